"""The memory that one call takes beyond what the process had before, at its peak."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch

_SELF = Path("/proc/self")


def of_call(call: Callable[[], object], device: str) -> float | None:
    """MB at the peak of a call, its results included; None where it cannot be measured.

    CPU: the process's highest resident set during the call (the kernel's own mark, reset just
    before) minus that before, after the allocator has given its free pages back. What a library
    keeps for good since an earlier call is not counted. Right to about 1 MB.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        result = call()
        torch.cuda.synchronize()
        del result
        return round((torch.cuda.max_memory_allocated() - held) / 1e6, 2)
    _trim()
    before = _status("VmRSS")
    try:
        (_SELF / "clear_refs").write_text("5")  # resets VmHWM (Linux 4.0)
    except OSError:
        call()
        return None
    result = call()
    peak = _status("VmHWM")
    del result
    if before is None or peak is None:
        return None
    return round(max(0, peak - before) * 1024 / 1e6, 2)


def _trim() -> None:
    """Give the allocator's free pages back to the system: a call must not find room in them."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except AttributeError:  # not glibc
        return


def _status(name: str) -> int | None:
    """An entry of /proc/self/status in KiB."""
    try:
        for line in (_SELF / "status").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1])
    except OSError:
        pass
    return None
