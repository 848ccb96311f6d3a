"""A long campaign of tests/ops/test_properties.py: random examples on every instruction set.

    python -m tests.fuzz [--checks 100000] [--seed 0] [--op OP] [--isa ISA]

The checks are shared out evenly among the instruction sets that run here and the ops. A check is
one example: shapes, strides, dtypes, labels and options that hypothesis chooses from the seed, and
the cpu backend's values and gradients against float64. A miss is printed in its smallest form, and
ends the command with 1. Each instruction set has a process of its own.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
JUDGE = ROOT / "tests" / "ops" / "test_properties.py"
OPS = ("mpm_nce", "dive", "nearest", "vrf", "rsa")


def run(op: str, checks: int, seed: int) -> int:
    """Run that many checks of an op here; returns how many were made. The first miss is raised."""
    from hypothesis import HealthCheck, Phase, settings
    from hypothesis import seed as seeded

    spec = importlib.util.spec_from_file_location("test_properties", JUDGE)
    assert spec is not None
    assert spec.loader is not None
    judge = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(judge)
    test: Any = getattr(judge, f"test_{op}")
    plain, made = test.hypothesis.inner_test, 0

    def counted(**example: Any) -> None:
        nonlocal made
        made += 1
        plain(**example)

    test.hypothesis.inner_test = counted
    test._hypothesis_internal_use_settings = settings(
        max_examples=checks,
        deadline=None,
        database=None,
        derandomize=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    call: Callable[..., None] = seeded(seed)(test)
    call(backend="cpu")
    return made


def _worker(given: argparse.Namespace) -> None:
    """All ops on the instruction set of this process; a miss of one does not spare the others."""
    missed = False
    for index, op in enumerate(given.op):
        start = time.monotonic()
        try:
            made = run(op, given.checks, given.seed + index)
        except AssertionError as miss:
            print(f"{given.isa[0]:12} {op:8} missed: {miss}", flush=True)
            notes = "\n".join(getattr(miss, "__notes__", []))
            print(notes, file=sys.stderr, flush=True)
            missed = True
            continue
        seconds = time.monotonic() - start
        print(f"{given.isa[0]:12} {op:8} {made:8} checks, 0 misses, {seconds:.0f} s", flush=True)
    raise SystemExit(int(missed))


def main() -> None:
    from robustft import _native

    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checks", type=int, default=100_000, help="in all (default: 100,000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--op", action="append", choices=OPS, help="again for more (default: all)")
    parser.add_argument("--isa", action="append", choices=_native.isas(), help="as --op")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.op = given.op or list(OPS)
    given.isa = given.isa or _native.isas()
    if given.here:
        _worker(given)
        return
    each = -(-given.checks // (len(given.op) * len(given.isa)))
    failed = False
    for index, isa in enumerate(given.isa):
        command = [sys.executable, "-m", "tests.fuzz", "--here", "--checks", str(each)]
        command += ["--seed", str(given.seed + 1000 * index), "--isa", isa]
        command += [part for op in given.op for part in ("--op", op)]
        # Most examples are too small for a second thread.
        environment = {"OMP_NUM_THREADS": "1"} | os.environ | {"ROBUSTFT_CPU_ISA": isa}
        done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
        failed |= done.returncode != 0
    print(
        "a miss: see above"
        if failed
        else f"{each * len(given.op) * len(given.isa)} checks: 0 misses"
    )
    raise SystemExit(int(failed))


if __name__ == "__main__":
    main()
