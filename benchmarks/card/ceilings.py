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


def cached(device: str, size: int = 16 << 20, rounds: int = 64) -> Probe:
    """Reading a buffer that the second-level cache holds, again and again in one launch."""
    import triton
    import triton.language as tl

    @triton.jit
    def sweep(x, out, blocks, rounds, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
        total = tl.zeros((BLOCK,), tl.float32)
        block = tl.program_id(0)
        for _ in range(rounds):  # each time another block: the first-level cache has none of it
            total += tl.load(x + block * BLOCK + tl.arange(0, BLOCK))
            block = (block + 7919) % blocks
        tl.store(out + tl.program_id(0), tl.sum(total, 0))

    block = 4096
    blocks = size // 4 // block
    x, out = torch.ones(size // 4, device=device), torch.empty(blocks, device=device)

    def call() -> torch.Tensor:
        sweep[(blocks,)](x, out, blocks, rounds, BLOCK=block, num_warps=8)
        return out

    return Probe(call, float(size) * rounds)


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
    found["second-level cache GB/s"] = rate(cached("cuda")) / 1e9
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
