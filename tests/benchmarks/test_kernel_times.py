"""Times of kernels, from a profiler's events."""

import csv

import pytest
import torch

pytest.importorskip("triton")

from benchmarks.card import ceilings, kernel_times
from robustft import backends


def test_lines_are_of_a_call_and_the_longest_first(tmp_path):
    events = [("a", 1000.0), ("b", 5000.0), ("a", 3000.0), ("b", 7000.0), ("a", 2000.0)]
    found = kernel_times.lines("op", "triton", events, 2)
    assert found == [
        ("op", "triton", "b", 1.0, 6.0, 12 / 18),
        ("op", "triton", "a", 1.5, 3.0, 6 / 18),
    ]
    kernel_times.write(tmp_path / "t.csv", found)
    rows = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert [row["kernel"] for row in rows] == ["b", "a"]


@pytest.mark.interpreter
@pytest.mark.skipif(not backends.interpreting(), reason="runs under TRITON_INTERPRET=1")
def test_the_cache_s_probe_reads_what_it_says():
    probe = ceilings.cached("cpu", size=1 << 16, rounds=3)
    assert probe.amount == 3 << 16
    assert torch.equal(probe.call(), torch.full((4,), 3 * 4096.0))
