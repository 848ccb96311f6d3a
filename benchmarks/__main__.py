"""Run the benchmarks of one op, print a table and write benchmarks/results/<op>-cpu.csv."""

from __future__ import annotations

import argparse
import importlib

import torch

from benchmarks import harness

OPS = ("dive", "vrf")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("op", choices=OPS)
    parser.add_argument("--quick", action="store_true", help="the smallest shape, one second each")
    parser.add_argument("--threads", type=int, default=None, help="torch's threads")
    given = parser.parse_args()
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    rate = harness.read_rate()
    print(f"{harness.processor()}; {torch.get_num_threads()} threads; read {rate / 1e9:.1f} GB/s\n")
    rows = []
    for case in importlib.import_module(f"benchmarks.{given.op}").cases(given.quick):
        rows += harness.measure(case, seconds=1 if given.quick else 6, read_rate=rate)
    print(harness.table(rows))
    if not given.quick:
        print(f"\nwritten: {harness.write(rows, f'{given.op}-cpu')}")


if __name__ == "__main__":
    main()
