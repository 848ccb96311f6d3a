"""The file of a fitted VRF: one safetensors file, the bank as its tensor, the rest as metadata.

The metadata string is "sha256:<digest>", a line feed, and a JSON object; the digest is of that
object's bytes, the bank's shape and the bank's bytes, so that a changed byte anywhere is found.
Files of format 1 hold the JSON object alone and are read without a digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustft import atomic
from robustft.ensemble._checks import check_positive, finite
from robustft.ensemble.vrf_select import modulation_of
from robustft.errors import InputError
from robustft.optional import require

FORMAT = 2
_KEY, _TENSOR, _MARK = "robustft.vrf", "failures", "sha256:"


OPTIONS: tuple[str, ...] = (
    "p", "k", "squared", "normalize", "calibrate", "a", "b", "omega", "space", "bank", "features",
    "as_released",
)  # fmt: skip
"""The estimator's arguments that are written."""
_LATER = {"omega", "space", "bank", "features", "as_released"}  # which older files lack
_NUMBERS: tuple[str, ...] = ("a_", "b_", "temperature_finetuned_", "temperature_zeroshot_")


class Saved(NamedTuple):
    """A file's contents. options: the estimator's arguments; fitted: attributes by name; failures:
    V, [M, D] float32 on the CPU."""

    options: dict[str, Any]
    fitted: dict[str, Any]
    failures: Tensor


def write(path: str | Path, fitted: Mapping[str, Any]) -> None:
    """Write a fitted VRF, given its attributes by name."""
    state = {name: fitted[name] for name in (*OPTIONS, *_NUMBERS)}
    selection, bank = fitted["selection_"], fitted["failures_"]
    state["selection_"] = None if selection is None else vars(selection)
    safetensors = require("safetensors.torch", extra="openclip")
    bank = bank.cpu().contiguous()
    text = json.dumps({"format": FORMAT, **state}, allow_nan=False)
    with atomic.replacing(path) as temporary:
        safetensors.save_file(
            {_TENSOR: bank},
            str(temporary),
            metadata={_KEY: f"{_MARK}{_digest(text, bank)}\n{text}"},
        )


def read(path: str | Path) -> Saved:
    """What `write` wrote.

    Errors: OSError for a file that is not there; InputError, naming it, for one that is no VRF, has
    changed since it was written, or holds what no VRF has.
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
    try:
        return Saved(*_checked(state), bank)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _checked(state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options, which the estimator checks, and the fitted attributes of a file."""
    expected = {*OPTIONS, *_NUMBERS, "selection_"}
    lacking = expected - set(state) - _LATER
    if lacking or set(state) - expected:
        odd = ", ".join(sorted(lacking or set(state) - expected))
        raise InputError(
            f"got metadata {'without' if lacking else 'with'} {odd}, expected "
            f"{', '.join(sorted(expected))}"
        )
    fitted: dict[str, Any] = {"a_": finite("a_", state["a_"])}
    fitted |= {name: check_positive(name, state[name]) for name in _NUMBERS[1:]}
    selection = state["selection_"]
    fitted["selection_"] = None if selection is None else modulation_of(selection)
    return {name: state[name] for name in OPTIONS if name in state}, fitted


def _digest(text: str, bank: Tensor) -> str:
    found = hashlib.sha256(text.encode("utf-8"))
    found.update(repr(tuple(bank.shape)).encode())
    found.update(bank.numpy().data)
    return found.hexdigest()
