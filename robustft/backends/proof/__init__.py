"""Kernels that prove themselves on the card they meet.

`auto` takes a kernel of a card (Triton, CUDA C++) once it has given the right numbers there. The
first eager call of an op and dtype asks it: a handful of problems of odd shapes, labels, masks,
misaligned rows and NaN, against the reference in float64, twice, to see the same bits; then its
time on one large problem beside the reference's. The verdict is kept on disk (verdicts.py). A
kernel that fails is not used, and said once; the reference serves.

Within torch.compile, a graph capture or a tracing mode nothing is proven: there `auto` takes what
has been, or the reference.

ROBUSTFT_TRUST: "prove" (as above, the default), "proven" (only what has been proven, by `robustft
verify` or a run before; no work at first use), "off" (`auto` takes no kernel of a card).
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import threading
import time
from types import ModuleType

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

from robustft.backends.proof import problem, verdicts
from robustft.backends.proof.verdicts import Verdict
from robustft.errors import InputError, warn

MODES = ("prove", "proven", "off")

_ROUNDS = 5
_LOCK = threading.RLock()
_log = logging.getLogger("robustft")


def mode() -> str:
    """What ROBUSTFT_TRUST says. Errors: InputError for another word than one of MODES."""
    asked = os.environ.get("ROBUSTFT_TRUST", "prove")
    if asked not in MODES:
        raise InputError(f"ROBUSTFT_TRUST: got {asked!r}, expected one of {', '.join(MODES)}")
    return asked


def trusted(
    op: str,
    backend: str,
    modules: tuple[str, str],
    where: str,
    dtype: torch.dtype,
    *,
    tuned: bool = False,
) -> bool | None:
    """Whether `auto` may take the backend's kernel on the device `where`; asks the kernel if that
    is in order. None if it is not known and cannot be found out now. Nothing is remembered here.

    modules: names of the backend's module and of the reference's. tuned: whether `robustft tune`
    found where it is fast; else the proof's own comparison with the reference counts.
    """
    asked, device = mode(), torch.device(where)
    if asked == "off":
        return False
    found = _found(op, backend, modules, device, dtype, prove_now=asked == "prove")
    if found is None:
        return None
    return found.passed if tuned else found.trusted


def _found(
    op: str,
    backend: str,
    modules: tuple[str, str],
    device: torch.device,
    dtype: torch.dtype,
    *,
    prove_now: bool,
) -> Verdict | None:
    """What is known, or found out now; None if neither."""
    entry = verdicts.name(op, backend, dtype)
    if _traced(device):
        return verdicts.read(backend, device).get(entry)
    with _LOCK:
        found = verdicts.read(backend, device).get(entry)
        if found is None and prove_now:
            with verdicts.one_at_a_time(backend, device):
                found = verdicts.read(backend, device).get(entry)
                if found is None:
                    found = prove(op, backend, modules, device, dtype)
                    verdicts.write(backend, device, entry, found)
    if found is not None and not found.passed:
        warn(
            f"{entry}: the kernel did not prove itself on {card(device)} ({found.why}); auto takes "
            f"another backend. `robustft verify --op {op}` shows more: please report it"
        )
    return found


def prove(
    op: str, backend: str, modules: tuple[str, str], device: torch.device, dtype: torch.dtype
) -> Verdict:
    """Ask a kernel, here and now, without a look at what is known."""
    began = time.perf_counter()
    problems = importlib.import_module(f"robustft.backends.proof.{op}")
    with problem.undisturbed(device):
        try:
            module, reference = (importlib.import_module(name) for name in modules)
        except Exception as error:  # what a compiler's import raises is open-ended
            return Verdict(False, f"{type(error).__name__}: {error}")
        for each in problems.problems(dtype):
            why = problem.failure(each, module, reference, device)
            if why is not None:
                return Verdict(False, why)
        faster = None
        if device.type == "cuda":
            faster = _faster(problems.speed(dtype), module, reference, device)
    found = Verdict(True, "", faster)
    seconds = time.perf_counter() - began
    _log.info("%s proven on %s in %.1f s", verdicts.name(op, backend, dtype), card(device), seconds)
    return found


def card(device: torch.device) -> str:
    """What the kernels run on."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _traced(device: torch.device) -> bool:
    """Whether what runs now is no plain eager call: a kernel cannot be asked in it."""
    if torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None:
        return True
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _faster(
    given: problem.Problem, module: ModuleType, reference: ModuleType, device: torch.device
) -> float:
    """The reference's time over the module's: medians of interleaved runs."""
    inputs = problem.placed(given, device)
    calls = {each: functools.partial(given.run, each, inputs) for each in (module, reference)}
    times = problem.medians(calls, device, _ROUNDS)
    return times[reference] / times[module]
