"""What the card can do, measured: copy and read rates, and products of large square matrices.

python -m benchmarks ceilings [--out FILE.json]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import probes
from benchmarks.harness import Probe, cuda_clock, name_of
from benchmarks.machine import Machine
from robustft import atomic


def ceilings(calls: int = 20) -> dict[str, float]:
    """Medians: GB/s of the streams, TFLOP/s of the products."""
    clock = cuda_clock()

    def rate(probe: Probe) -> float:
        for _ in range(3):
            probe.call()
        return probe.amount / statistics.median(clock(probe.call) for _ in range(calls))

    found = {f"{name} GB/s": rate(p) / 1e9 for name, p in probes.streams("cuda").items()}
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        found[f"mm {name_of(dtype)} TFLOP/s"] = rate(probes.square("cuda", dtype)) / 1e12
    torch.backends.cuda.matmul.allow_tf32 = True
    found["mm tf32 TFLOP/s"] = rate(probes.square("cuda", torch.float32)) / 1e12
    torch.backends.cuda.matmul.allow_tf32 = False
    return {name: round(value, 1) for name, value in found.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks ceilings", description=__doc__)
    parser.add_argument("--out", type=Path, help="write them as JSON")
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device")
    machine = Machine.here("cuda")
    properties = torch.cuda.get_device_properties(0)
    print(f"{machine.processor}, {machine.isa}; {machine.versions}")
    print(
        f"{properties.multi_processor_count} multiprocessors, "
        f"{properties.total_memory / 1e9:.0f} GB, L2 {properties.L2_cache_size / 1e6:.0f} MB"
    )
    found = ceilings()
    for name, value in found.items():
        print(f"{name:24}{value:10.1f}")
    if given.out:
        atomic.write_json(given.out, found)
