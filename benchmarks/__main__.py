"""Measure ops and show the results.

python -m benchmarks OP      one of the ops, or all; rows go to benchmarks/results/PROCESSOR/
python -m benchmarks step    whole training steps of a ViT-B-32, and VRF's evaluation
python -m benchmarks report  the plots, and the tables of docs/performance.md, from those rows
python -m benchmarks TOOL    a tool for cards, with options of its own: ceilings, cubins,
                             cuda_cubins, kernel_times, launches, ring, rows, small_cases or
                             tune (docs/gpu.md)
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import sys
import time
from pathlib import Path

import torch

from benchmarks import report, results
from benchmarks.harness import Options, Row, measure, shape_of
from benchmarks.machine import Machine

OPS = ("mpm_nce", "dive", "nearest", "vrf", "rsa")
TOOLS = (
    "ceilings", "cubins", "cuda_cubins", "kernel_times", "launches", "ring", "rows", "small_cases",
    "tune",
)  # fmt: skip


def main() -> None:
    if sys.argv[1:] and sys.argv[1] in TOOLS:
        importlib.import_module(f"benchmarks.card.{sys.argv[1]}").main(sys.argv[2:])
        return
    given = _parser().parse_args()
    if given.op == "report":
        for path in report.write(given.out or results.FOLDER):
            print(f"written: {path}")
        return
    if given.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device: got cuda, torch finds no CUDA device")
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    ops = OPS if given.op == "all" else (given.op,)
    if given.shapes and len(ops) > 1:
        raise SystemExit("--shapes: got it with all, expected one op")
    machine = Machine.here(given.device)
    print(f"{machine.processor}, {machine.isa}, {torch.get_num_threads()} threads; commit "
          f"{machine.commit or 'unknown'}\n{machine.versions}\n", flush=True)  # fmt: skip
    for op in ops:
        start = time.monotonic()
        saved = _measure(op, given, machine)
        print(f"\n{op}: {time.monotonic() - start:.0f} s")
        if saved is not None:
            print(f"written: {saved} and .json\n")


def _measure(op: str, given: argparse.Namespace, machine: Machine) -> Path | None:
    """Measure and print; where rows are written, all there are after each case: a run that is
    stopped leaves what it has."""
    module = importlib.import_module(f"benchmarks.{op}")
    shapes = module.QUICK if given.quick else module.FULL if given.full else module.DEFAULT
    if given.shapes:
        shapes = [shape_of(text) for text in given.shapes.split(",")]
        if any(len(shape) != len(shapes[0]) or len(shape) != len(module.QUICK[0])
               for shape in shapes):  # fmt: skip
            raise SystemExit(f"--shapes: got {given.shapes!r}, expected {module.SHAPE},…")
    seconds = given.seconds if given.seconds is not None else 0.05 if given.quick else 1.5
    options = Options(given.device, seconds, given.limit, tuple(given.providers))
    writes = given.out or not (given.quick or given.shapes or given.providers)
    rows: list[Row] = []
    path = None
    for case in module.cases(shapes, given.device, given.quick):
        found = measure(case, options, machine)
        rows += found
        print("\n".join(report.lines(found)), flush=True)
        if writes:
            folder = results.place(given.out or results.FOLDER, machine.processor)
            path = results.write(rows, _name(op, given), folder)
        del case
        gc.collect()
    return path


def _name(op: str, given: argparse.Namespace) -> str:
    """The file's name: op and device, and what was not the default."""
    parts = [op, given.device]
    if given.device == "cpu" and os.environ.get("ROBUSTFT_CPU_ISA"):
        parts.append(os.environ["ROBUSTFT_CPU_ISA"])
    if given.threads is not None:
        parts.append(f"{given.threads}t")
    return "-".join(parts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("op", choices=[*OPS, "step", "all", "report"])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a tiny shape: shows that all works")
    size.add_argument("--full", action="store_true", help="every shape, which can take hours")
    size.add_argument("--shapes", help="shapes like 512x768,4096x768 instead (see the op's file)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, help="torch's threads (default: its own)")
    parser.add_argument("--seconds", type=float, help="a provider and case (default: 1.5)")
    parser.add_argument(
        "--limit", type=float, default=30.0, help="seconds; a longer call is skipped (default: 30)"
    )
    parser.add_argument(
        "--providers",
        type=lambda text: text.split(","),
        default=(),
        help="only those with one of these parts in their names",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder to write to (default: benchmarks/results, and there the processor's own; "
        "quick and partial runs are written only with it)",
    )
    return parser


if __name__ == "__main__":
    main()
