"""safetensors files: written whole or not at all, with errors a user can act on.

What is written here carries a SHA-256 of its tensors and its header, so that a changed byte is
found when the tensors are read; a file without one (another program's) is taken as it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from robustft.errors import InputError
from robustft.extras import require
from robustft.files import replacing

_SUM = "robustft.sha256"


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors and a header of strings. OSError if the disk does not take them."""
    safetensors = require("safetensors", extra="openclip")
    save_file = require("safetensors.torch", extra="openclip").save_file
    # Clones, because safetensors refuses tensors that share memory.
    copies = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    header = dict(metadata or {})
    header[_SUM] = _sum(copies, header)
    with replacing(path) as temporary:
        try:
            save_file(copies, temporary, metadata=header)
        except safetensors.SafetensorError as error:
            raise OSError(f"{path}: could not be written ({error})") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file. InputError if it is damaged; OSError if it cannot be read."""
    header = read_metadata(path)
    safetensors = require("safetensors", extra="openclip")
    try:
        tensors: dict[str, Tensor] = require("safetensors.torch", extra="openclip").load_file(path)
    except safetensors.SafetensorError as error:
        raise InputError(f"{path}: not a whole safetensors file ({error})") from error
    written = header.pop(_SUM, None)
    if written is not None and written != _sum(tensors, header):
        raise InputError(
            f"{path} is damaged: its contents do not have the checksum written with them"
        )
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """The header of a file. Errors as for `read_tensors`."""
    safetensors = require("safetensors", extra="openclip")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except safetensors.SafetensorError as error:
        raise InputError(f"{path}: not a whole safetensors file ({error})") from error


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes, dtypes and bits."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        flat = tensor.detach().contiguous().cpu().flatten()
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        total.update(flat.view(torch.uint8).numpy().data)
    return total.hexdigest()


def _sum(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    text = json.dumps([digest(tensors), header], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
