"""The file of a fitted VRF: one safetensors file, the bank as its tensor, the rest as metadata.

The metadata string is "sha256:<digest>", a line feed, and a JSON object; the digest is of that
object's bytes, the bank's shape and the bank's bytes, so that a changed byte anywhere is found.
Files of format 1 hold the JSON object alone and are read without a digest.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustft import atomic
from robustft.errors import InputError
from robustft.optional import require

FORMAT = 2
_KEY, _TENSOR, _MARK = "robustft.vrf", "failures", "sha256:"


def write(path: str | Path, state: dict[str, Any], bank: Tensor) -> None:
    """Write `state` (plain JSON values) and the bank [M, D] float32."""
    safetensors = require("safetensors.torch", extra="openclip")
    bank = bank.cpu().contiguous()
    text = json.dumps({"format": FORMAT, **state}, allow_nan=False)
    with atomic.replacing(path) as temporary:
        safetensors.save_file(
            {_TENSOR: bank},
            str(temporary),
            metadata={_KEY: f"{_MARK}{_digest(text, bank)}\n{text}"},
        )


def read(path: str | Path) -> tuple[dict[str, Any], Tensor]:
    """What `write` wrote: the state without its format, and the bank on the CPU.

    Errors: OSError for a file that is not there; InputError, naming it, for one that is no VRF or
    has changed since it was written.
    """
    safetensors = require("safetensors", extra="openclip")
    with open(path, "rb"):
        pass  # an OSError that names the file, where safetensors has its own
    try:
        with safetensors.safe_open(str(path), framework="pt", device="cpu") as file:
            text = (file.metadata() or {})[_KEY]
            bank = file.get_tensor(_TENSOR)
    except (safetensors.SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise InputError(f"{path}: got a file that VRF.save did not write ({error})") from error
    if bank.dtype != torch.float32 or bank.ndim != 2 or bank.shape[1] == 0:
        raise InputError(
            f"{path}: got failures of shape {tuple(bank.shape)} and dtype {bank.dtype}, "
            "expected float32 [M, D]"
        )
    mark, line, rest = text.partition("\n")
    text = rest if line else text
    try:
        state = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: got metadata that is not JSON ({error})") from error
    if not isinstance(state, dict):
        raise InputError(f"{path}: got a {type(state).__name__} as metadata, expected an object")
    version = state.pop("format", None)
    if version not in (1, FORMAT):
        raise InputError(f"{path}: got format {version!r}, expected {FORMAT}")
    if (line or version == FORMAT) and mark != _MARK + _digest(text, bank):
        raise InputError(
            f"{path}: got contents that do not have the checksum written with them, expected an "
            "unchanged file (it is damaged: fit again, or copy it again)"
        )
    bad = int((~torch.isfinite(bank)).any(dim=1).sum())
    if bad:
        raise InputError(f"{path}: got NaN or Inf in {bad} rows, expected finite features")
    return state, bank


def _digest(text: str, bank: Tensor) -> str:
    found = hashlib.sha256(text.encode("utf-8"))
    found.update(repr(tuple(bank.shape)).encode())
    found.update(bank.numpy().data)
    return found.hexdigest()
