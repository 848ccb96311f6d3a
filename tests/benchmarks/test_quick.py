"""`python -m benchmarks OP --quick` runs from end to end and writes rows that hold together."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import plot, results

OPS = ("mpm_nce", "dive", "nearest", "vrf", "rsa")
ROOT = Path(__file__).parents[2]
ERRORS = {"float32": 1e-3, "bfloat16": 0.05}


def run(op: str, out: Path, *more: str) -> None:
    command = [sys.executable, "-m", "benchmarks", op, "--quick", "--out", str(out), *more]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    for path in out.glob("*.csv"):
        for row in results.read(path):
            assert row.provider in done.stdout
            assert row.skipped[:40] in done.stdout


def checked(op: str, path: Path) -> list[results.Row]:
    rows = results.read(path)
    assert len(json.loads(path.with_suffix(".json").read_text())) == len(rows)
    for row in rows:
        assert row.op == op
        if row.p50_ms is None:
            assert row.skipped
            continue
        assert 0 < row.p20_ms <= row.p50_ms <= row.p80_ms
        assert row.runs >= 3
        assert row.rate > 0
        assert row.of_floor > 0
        assert math.isfinite(row.times_unit)
        assert row.processor
        assert row.versions.count("torch 2.") == 1
        if row.kind != "floor" and row.mode != "pack":
            assert row.largest_error <= ERRORS[row.dtype], row
    assert plot.draw(rows) is not None
    return rows


def test_eager_and_reference(tmp_path):
    run("all", tmp_path, "--providers", "torch eager,torch topk,robustft", "--threads", "1")
    assert {path.name for path in tmp_path.glob("*.csv")} == {f"{op}-cpu-1t.csv" for op in OPS}
    for op in OPS:
        rows = checked(op, tmp_path / f"{op}-cpu-1t.csv")
        timed = {row.provider for row in rows if row.p50_ms is not None}
        assert "robustft reference" in timed
        assert {"torch eager", "torch topk"} & timed
        assert {row.threads for row in rows} == {1}


@pytest.mark.slow
@pytest.mark.parametrize("op", OPS)
def test_every_provider(op, tmp_path):
    """torch.compile too; a peer may be absent, but then says that it is not installed."""
    run(op, tmp_path)
    rows = checked(op, tmp_path / f"{op}-cpu.csv")
    for row in rows:
        if row.skipped and row.kind == "peer":
            assert "No module named" in row.skipped or "has no" in row.skipped, row.skipped
    assert any(row.kind == "peer" and row.p50_ms for row in rows)


def test_bad_shapes_are_refused():
    command = [sys.executable, "-m", "benchmarks", "dive", "--shapes", "4096"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode != 0
    assert "--shapes: got '4096', expected BxD" in done.stderr
