"""safetensors files: written whole or not at all, with errors a user can act on.

What is written here has one entry in its header (several would come in an order that changes from
process to process): a JSON object, with a SHA-256 of itself and of the tensors, so that a changed
byte is found when the tensors are read. An object without one is taken as it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustft.atomic import replacing_apart
from robustft.errors import InputError
from robustft.optional import require

_SUM = "sha256"


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], key: str, description: Mapping[str, Any]
) -> None:
    """Write tensors, and under `key` what describes them (JSON, which has no "sha256").

    Errors: OSError if the disk does not take them; TypeError or ValueError for what JSON cannot
    hold.
    """
    safetensors = require("safetensors", extra="openclip")
    save_file = require("safetensors.torch", extra="openclip").save_file
    # Clones, because safetensors refuses tensors that share memory.
    copies = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    header = json.dumps({**description, _SUM: _sum(copies, description)})
    with replacing_apart(path) as temporary:
        try:
            save_file(copies, temporary, metadata={key: header})
        except safetensors.SafetensorError as error:
            raise OSError(f"{path}: could not be written ({error})") from error


def read_tensors(path: Path, key: str) -> dict[str, Tensor]:
    """All tensors of a file. InputError if it is damaged; OSError if it cannot be read."""
    safetensors = require("safetensors", extra="openclip")
    try:
        tensors: dict[str, Tensor] = require("safetensors.torch", extra="openclip").load_file(path)
    except safetensors.SafetensorError as error:
        raise InputError(f"{path}: not a whole safetensors file ({error})") from error
    description = _description(path, key) or {}
    written = description.pop(_SUM, None)
    if written is not None and written != _sum(tensors, description):
        raise InputError(
            f"{path} is damaged: its contents do not have the checksum written with them"
        )
    return tensors


def read_description(path: Path, key: str) -> dict[str, Any] | None:
    """What stands under `key`, or None where nothing does. Errors as for `read_tensors`."""
    description = _description(path, key)
    if description is not None:
        description.pop(_SUM, None)
    return description


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


def _description(path: Path, key: str) -> dict[str, Any] | None:
    text = read_metadata(path).get(key)
    if text is None:
        return None
    try:
        description = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: its header is not JSON ({error})") from error
    if not isinstance(description, dict):
        raise InputError(f"{path} is damaged: its header is no JSON object")
    return description


def _sum(tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> str:
    text = json.dumps([digest(tensors), description], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
