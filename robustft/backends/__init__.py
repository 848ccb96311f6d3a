"""Which backends exist, which run here and why not, and which one serves a call.

A backend is a set of modules, one an op, that share function names: `reference` (plain PyTorch),
`cpu` (C++), `triton` and `cuda` (CUDA C++; some ops). `IMPLEMENTATIONS` is the only table of them.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from robustft.backends import card
from robustft.backends.simulation import emulating, interpreting
from robustft.errors import InputError
from robustft.installation import not_built, without_kernels

if TYPE_CHECKING:  # which backends there are can be told without torch (robustft doctor)
    import torch

NAMES = ("reference", "cpu", "triton", "cuda")

# op → backend → module that implements it. One op has one name in every room; an op may lack a
# backend, never the reference.
IMPLEMENTATIONS: dict[str, dict[str, str]] = {
    "mpm_nce": {
        "reference": "robustft.backends.reference.mpm_nce",
        "cpu": "robustft.backends.cpu.mpm_nce",
        "triton": "robustft.kernels.mpm_nce",
        "cuda": "robustft.backends.cuda.mpm_nce",
    },
    "dive": {
        "reference": "robustft.backends.reference.dive",
        "cpu": "robustft.backends.cpu.dive",
        "triton": "robustft.kernels.dive",
        "cuda": "robustft.backends.cuda.dive",
    },
    "nearest": {
        "reference": "robustft.backends.reference.nearest",
        "cpu": "robustft.backends.cpu.nearest",
        "triton": "robustft.kernels.nearest",
        "cuda": "robustft.backends.cuda.nearest",
    },
    "vrf": {
        "reference": "robustft.backends.reference.vrf",
        "cpu": "robustft.backends.cpu.vrf",
        "triton": "robustft.kernels.vrf",
    },
    "rsa": {
        "reference": "robustft.backends.reference.rsa",
        "cpu": "robustft.backends.cpu.rsa",
        "triton": "robustft.kernels.rsa",
    },
}
OPS = tuple(IMPLEMENTATIONS)

# Kernels that serve fewer dtypes than the others (tensors.KERNEL_DTYPES), and those for cards of
# one capability alone.
_DTYPES = {("mpm_nce", "cuda"): ("bfloat16", "float16")}
_CAPABILITIES = {("mpm_nce", "cuda"): (9, 0)}

# What "auto" takes, as the recorded benchmarks show it fastest: device type → op → lines of the
# largest size, ascending, and a backend. Size is the number of elements of the op's first tensor,
# None any. The first line counts whose size is large enough and whose backend runs; if none, the
# reference. What `robustft tune` measured on a card comes in the place of its lines.
AUTO: dict[str, dict[str, tuple[tuple[int | None, str], ...]]] = {
    "cpu": {op: ((None, "cpu"),) for op in OPS},
    # In the order in which they are predicted to be fast (docs/gpu.md). No card of ours has run
    # them: each has to prove itself on the card it meets, and to beat the reference there.
    "cuda": {
        "mpm_nce": ((None, "cuda"), (None, "triton")),
        "dive": ((None, "cuda"), (None, "triton")),
        "nearest": ((None, "cuda"), (None, "triton")),
        "vrf": ((None, "triton"),),
        "rsa": ((None, "triton"),),
    },
}


@dataclass(frozen=True)
class Status:
    """Whether a backend runs on this machine, and if not, why; `detail` says what it found."""

    name: str
    runs: bool
    reason: str
    detail: str = ""


@functools.cache
def status(name: str) -> Status:
    """The state of one backend on this machine (found once a process)."""
    return _PROBES[name]()


def available() -> dict[str, Status]:
    """Every backend by name, with whether it runs here and why not."""
    return {name: status(name) for name in NAMES}


def choose(
    op: str,
    device: str,
    dtype: torch.dtype,
    requested: str,
    size: int = 0,
    index: int | None = None,
) -> str:
    """The backend that `load` takes: `requested`, or what "auto" stands for here and now.

    index: of the card, None for the current one.
    """
    if requested != "auto":
        return requested
    tuned = _tuned(op, device, index, dtype)
    for largest, name in tuned or AUTO.get(device, {}).get(op, ()):
        if largest is not None and size > largest:
            continue
        if _obstacle(op, name, device, dtype) is None and (
            name not in card.KERNELS or _trusted(op, name, device, index, dtype, bool(tuned))
        ):
            return name
    return "reference"


# What is known in this process of kernels on cards: op, backend, dtype and device. And what
# `robustft tune` left in the place of AUTO's lines, if anything.
_TRUST: dict[tuple[str, str, torch.dtype, str, int | None], bool] = {}
_TUNED: dict[tuple[str, torch.dtype, str, int | None], tuple[tuple[int | None, str], ...]] = {}


def forget() -> None:
    """Drop what this process knows of kernels on cards: it is read, or found out, anew."""
    _TRUST.clear()
    _TUNED.clear()
    importlib.import_module("robustft.backends.proof.tuned").known.cache_clear()


def _tuned(
    op: str, device: str, index: int | None, dtype: torch.dtype
) -> tuple[tuple[int | None, str], ...]:
    """Lines as AUTO's that were measured here; none where nothing was."""
    key = op, dtype, device, index
    lines = _TUNED.get(key)
    if lines is None:
        lines = ()
        here = device != "cpu" or interpreting() or emulating()  # else nobody looks for Triton
        if here and any(serves(op, name, device, dtype) for name in card.KERNELS):
            torch = importlib.import_module("torch")
            if index is None and device == "cuda":
                return _tuned(op, device, torch.cuda.current_device(), dtype)
            tuned = importlib.import_module("robustft.backends.proof.tuned")
            found = tuned.known(torch.device(device, index)).lines
            lines = found.get(tuned.name(op, dtype), ())
        _TUNED[key] = lines
    return lines


def _trusted(
    op: str, name: str, device: str, index: int | None, dtype: torch.dtype, tuned: bool
) -> bool:
    """Whether "auto" may take a card's kernel: found out once a process, when it first can be."""
    if index is None and device == "cuda":
        index = importlib.import_module("torch").cuda.current_device()
    key = op, name, dtype, device, index
    known = _TRUST.get(key)
    if known is None:
        from robustft.backends import proof

        modules = IMPLEMENTATIONS[op][name], IMPLEMENTATIONS[op]["reference"]
        place = device if index is None else f"{device}:{index}"
        known = proof.trusted(op, name, modules, place, dtype, tuned=tuned)
        if known is None:
            return False
        _TRUST[key] = known
    return known


def load(op: str, device: str, dtype: torch.dtype, requested: str, size: int = 0) -> ModuleType:
    """The module that serves `op` for tensors of this device type and dtype.

    size: elements of the op's first tensor, by which "auto" may choose.

    Errors: InputError for an unknown backend name, or a forced one that cannot serve the call.
    """
    return _implementation(op, device, dtype, choose(op, device, dtype, requested, size))


def serves(op: str, name: str, device: str, dtype: torch.dtype) -> bool:
    """Whether a backend has a kernel of the op that runs here, on tensors of this device type."""
    return _obstacle(op, name, device, dtype) is None


@functools.cache
def _implementation(op: str, device: str, dtype: torch.dtype, name: str) -> ModuleType:
    if name not in NAMES:
        raise InputError(f"backend: got {name!r}, expected 'auto' or one of {NAMES}")
    obstacle = _obstacle(op, name, device, dtype)
    if obstacle is not None:
        raise InputError(f"backend {name!r} cannot run {op}: {obstacle}")
    return importlib.import_module(IMPLEMENTATIONS[op][name])


@functools.cache
def _obstacle(op: str, name: str, device: str, dtype: torch.dtype) -> str | None:
    """Why backend `name` cannot serve this call, or None."""
    if name not in IMPLEMENTATIONS[op]:
        return "this op has no kernel for it yet"
    if name == "reference":
        return None
    if not status(name).runs:
        return status(name).reason
    on_cpu = {"cpu": True, "triton": interpreting(), "cuda": emulating()}
    wanted = "cpu" if on_cpu[name] else "cuda"
    if device != wanted:
        return f"the tensors are on {device!r}, it serves {wanted!r}"
    from robustft.backends.tensors import KERNEL_DTYPES

    if dtype not in KERNEL_DTYPES:
        return f"it serves float32, bfloat16 and float16, the tensors are {dtype}"
    return declined(op, name, device, dtype)


def declined(op: str, name: str, device: str, dtype: torch.dtype) -> str | None:
    """Why a kernel of the op serves no such dtype, or not the cards that are here, or None."""
    served = _DTYPES.get((op, name))
    if served is not None and str(dtype).removeprefix("torch.") not in served:
        return f"it serves {' and '.join(served)}, the tensors are {dtype}"
    wanted = _CAPABILITIES.get((op, name))
    if wanted is not None and device == "cuda":
        for found in card.capabilities():
            if found != wanted:
                kinds = ["sm_{}{}".format(*kind) for kind in (wanted, found)]
                return f"it is for {kinds[0]}, a card here is {kinds[1]}"
    return None


def _probe_reference() -> Status:
    version = card.torch_version()
    if version is None:
        return Status("reference", False, "torch is not installed")
    return Status("reference", True, "", f"torch {version}")


def _probe_cpu() -> Status:
    try:
        native = importlib.import_module("robustft._native")
    except ImportError as error:
        reason = not_built() or without_kernels() or f"the native module did not load ({error})"
        return Status("cpu", False, reason)
    try:
        chosen = native.isa()
    except ValueError as error:  # ROBUSTFT_CPU_ISA: not a reason to fall back in silence
        raise InputError(str(error)) from None
    return Status("cpu", True, "", f"{chosen} (this processor runs: {', '.join(native.isas())})")


def _probe_triton() -> Status:
    if importlib.util.find_spec("triton") is None:
        return Status("triton", False, "triton is not installed: pip install 'robustft[triton]'")
    if interpreting():
        return Status("triton", True, "", "interpreter, on CPU tensors (TRITON_INTERPRET=1)")
    if not card.present():
        return Status("triton", False, "torch finds no CUDA device")
    return Status("triton", True, "", _card_name())


def _probe_cuda() -> Status:
    reason = card.obstacle()
    if reason is not None:
        return Status("cuda", False, reason)
    if emulating():
        return Status("cuda", True, "", "emulator, on CPU tensors (ROBUSTFT_CUDA_EMULATOR)")
    return Status("cuda", True, "", _card_name())


def _card_name() -> str:
    import torch

    return torch.cuda.get_device_name()


_PROBES = {
    "reference": _probe_reference,
    "cpu": _probe_cpu,
    "triton": _probe_triton,
    "cuda": _probe_cuda,
}
