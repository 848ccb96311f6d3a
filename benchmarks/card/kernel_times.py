"""What each kernel of an op takes on the card, by torch's profiler.

    python -m benchmarks kernel_times [--once] [--out FILE.csv]

The large shapes of the roof that is predicted in docs/gpu.md. --once: a call each without the
profiler, for Nsight Compute to look at.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.card import tune
from robustft import atomic, backends

CALLS = 5
_B16, _F16, _F32 = torch.bfloat16, torch.float16, torch.float32
SHAPES = (
    tune.Job("mpm_nce", _B16, 512, ((32768, 32768),)),
    tune.Job("dive", _B16, 1024, ((65536,),)),
    tune.Job("nearest", _F16, 512, ((50_000, 350_000),)),
    tune.Job("vrf", _B16, 1000, ((50_000,),)),
    tune.Job("rsa", _F32, 512, ((20_000,),)),
)


class Line(NamedTuple):
    """A kernel within the calls of an op by a backend."""

    op: str
    backend: str
    kernel: str
    launches: float  # a call
    milliseconds: float  # a call
    share: float  # of all kernels' time


def lines(op: str, backend: str, events: Iterable[tuple[str, float]], calls: int) -> list[Line]:
    """From (kernel, microseconds) of all launches in so many calls, the longest first."""
    spent: dict[str, list[float]] = {}
    for name, taken in events:
        spent.setdefault(name, []).append(taken)
    whole = sum(map(sum, spent.values()))
    found = [
        Line(op, backend, name, len(each) / calls, sum(each) / calls / 1e3, sum(each) / whole)
        for name, each in spent.items()
    ]
    return sorted(found, key=lambda line: -line.milliseconds)


def calls(device: str) -> Iterator[tuple[str, str, Callable[[], object]]]:
    """(op and shape, backend, a call of it), for the backends of the card."""
    for job in SHAPES:
        (shape,) = job.shapes
        names = [b for b in backends.card.KERNELS if backends.serves(job.op, b, device, job.dtype)]
        for backend, call in tune.calls(job, shape, device, names).items():
            yield f"{job.name} {'x'.join(map(str, shape))}", backend, call


def profiled(call: Callable[[], object]) -> list[tuple[str, float]]:
    """What CALLS calls ran on the card."""
    call()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(CALLS):
            call()
        torch.cuda.synchronize()
    events: Any = profile.events()
    kind = torch.autograd.DeviceType.CUDA
    return [(e.name, float(e.device_time)) for e in events if e.device_type == kind]


def write(path: Path, found: Sequence[Line]) -> None:
    with atomic.replacing(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Line._fields)
        writer.writerows(found)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks kernel_times", description=__doc__)
    parser.add_argument("--once", action="store_true", help="no profiler, one call each")
    parser.add_argument("--out", type=Path, help="write the lines as CSV, after each op")
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device")
    found: list[Line] = []
    for op, backend, call in calls("cuda"):
        if given.once:
            call()
            continue
        new = lines(op, backend, profiled(call), CALLS)
        found += new
        for line in new:
            print(f"{line.op:44}{line.backend:8}{line.milliseconds:9.3f} ms {line.share:6.1%}  "
                  f"{line.launches:g} × {line.kernel[:60]}", flush=True)  # fmt: skip
        if given.out:
            write(given.out, found)
