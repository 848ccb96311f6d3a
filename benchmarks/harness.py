"""Timing that can be compared: providers take turns, medians and spreads are of the same minutes.

A rate is the bytes that the op must move at least, over the median time; beside it stands the
machine's own read rate, measured in the same run.
"""

from __future__ import annotations

import csv
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

import robustft
from robustft.files import replacing

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Case:
    """One op at one shape and dtype: providers to time, and what they should give."""

    op: str
    mode: str  # forward or forward+backward
    shape: str
    dtype: str
    bytes: int  # the least traffic to and from memory
    providers: dict[str, Callable[[], list[Tensor]]]  # each returns the results and gradients
    truth: list[Tensor]  # the same in float64


@dataclass(frozen=True)
class Row:
    """One provider of a case, as measured."""

    op: str
    provider: str
    mode: str
    shape: str
    dtype: str
    p20_ms: float
    p50_ms: float
    p80_ms: float
    gb_per_s: float
    of_read_rate: float
    largest_error: float  # relative to the largest float64 entry, over all results
    threads: int
    load_before: float
    processor: str
    torch: str
    robustft: str


def measure(case: Case, *, seconds: float, read_rate: float) -> list[Row]:
    """Time the providers of a case in turns for about `seconds` in all."""
    load = os.getloadavg()[0]
    errors, times = {}, {name: [] for name in case.providers}
    for name, call in case.providers.items():
        errors[name] = max(_error(a, b) for a, b in zip(call(), case.truth, strict=True))
        call()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, times.values())) < 5:
        for name, call in case.providers.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    rows = []
    for name, taken in times.items():
        p20, p50, p80 = (statistics.quantiles(taken, n=10)[i] for i in (1, 4, 7))
        rate = case.bytes / p50
        rows.append(
            Row(
                case.op,
                name,
                case.mode,
                case.shape,
                case.dtype,
                *(round(1e3 * t, 4) for t in (p20, p50, p80)),
                gb_per_s=round(rate / 1e9, 2),
                of_read_rate=round(rate / read_rate, 3),
                largest_error=float(f"{errors[name]:.2g}"),
                threads=torch.get_num_threads(),
                load_before=round(load, 2),
                processor=processor(),
                torch=torch.__version__,
                robustft=robustft.__version__,
            )
        )
    return rows


def read_rate(megabytes: int = 512) -> float:
    """Bytes a second at which torch sums a large float32 tensor: the best of ten."""
    x = torch.ones(megabytes << 18)
    best = min(_timed(x.sum) for _ in range(10))
    return x.numel() * 4 / best


def table(rows: list[Row]) -> str:
    """A markdown table, with each provider's speed relative to the first of its case."""
    head = ["op", "mode", "shape", "dtype", "provider", "p50 ms (p20–p80)", "× first"]
    head += ["GB/s", "of read rate", "error"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    first: dict[tuple[str, ...], float] = {}
    for r in rows:
        base = first.setdefault((r.op, r.mode, r.shape, r.dtype), r.p50_ms)
        lines.append(
            f"| {r.op} | {r.mode} | {r.shape} | {r.dtype} | {r.provider} "
            f"| {r.p50_ms:.3f} ({r.p20_ms:.3f}–{r.p80_ms:.3f}) | {base / r.p50_ms:.2f} "
            f"| {r.gb_per_s:.1f} | {r.of_read_rate:.2f} | {r.largest_error:.1e} |"
        )
    return "\n".join(lines)


def write(rows: list[Row], name: str) -> Path:
    """Write the rows as CSV into benchmarks/results/."""
    path = RESULTS / f"{name}.csv"
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(asdict(rows[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    return path


def processor() -> str:
    """The processor's name and how many cores are here."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return f"{name}, {os.cpu_count()} cores"


def _error(found: Tensor, truth: Tensor) -> float:
    return float((found.double() - truth).abs().max() / truth.abs().max().clamp_min(1e-300))


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
