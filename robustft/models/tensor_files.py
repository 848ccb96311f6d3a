"""safetensors files: written whole or not at all, with errors a user can act on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from robustft.errors import InputError
from robustft.extras import require
from robustft.files import replacing


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors and a header of strings. OSError if the disk does not take them."""
    safetensors = require("safetensors", extra="openclip")
    save_file = require("safetensors.torch", extra="openclip").save_file
    # Clones, because safetensors refuses tensors that share memory.
    copies = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    with replacing(path) as temporary:
        try:
            save_file(copies, temporary, metadata=dict(metadata or {}))
        except safetensors.SafetensorError as error:
            raise OSError(f"{path}: could not be written ({error})") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file. InputError if it is damaged; OSError if it cannot be read."""
    safetensors = require("safetensors", extra="openclip")
    try:
        tensors: dict[str, Tensor] = require("safetensors.torch", extra="openclip").load_file(path)
    except safetensors.SafetensorError as error:
        raise InputError(f"{path}: not a whole safetensors file ({error})") from error
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """The header of a file. Errors as for `read_tensors`."""
    safetensors = require("safetensors", extra="openclip")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except safetensors.SafetensorError as error:
        raise InputError(f"{path}: not a whole safetensors file ({error})") from error
