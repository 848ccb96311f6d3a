"""What the harness claims: turns, errors, memory, skipping, files, tables."""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import harness, machine, memory, report, results
from benchmarks.__main__ import main
from benchmarks.harness import Case, Options, Probe, Row, measure, relative_error, shape_of
from benchmarks.machine import Machine

MACHINE = Machine("cpu", "a processor", "an isa", "versions", "commit")


def case(providers, **more):
    options = {
        "op": "op",
        "mode": "forward",
        "shape": "7x11",
        "dtype": "float32",
        "amount": 1e6,
        "unit": "GB/s",
        "probes": {"sleep": Probe(lambda: time.sleep(0.001), 1e6)},
        "truth": lambda: [torch.ones(3, dtype=torch.float64)],
    }
    return Case(providers=providers, **(options | more))


def rows_of(providers, *, seconds=0.06, limit=30.0, only=(), **more):
    found = measure(case(providers, **more), Options("cpu", seconds, limit, only), MACHINE)
    return {row.provider: row for row in found}


def sleeper(seconds, value=1.0):
    def call():
        time.sleep(seconds)
        return [torch.full((3,), value)]

    return lambda: call


def test_medians_rates_and_units():
    rows = rows_of({"slow": sleeper(0.004), "robustft cpu": sleeper(0.002)}, step=5e5)
    assert list(rows) == ["sleep", "slow", "robustft cpu"]
    assert [row.kind for row in rows.values()] == ["floor", "peer", "robustft"]
    # A sleep lasts at least as long as asked, and on a loaded machine longer.
    assert 4 <= rows["slow"].p20_ms <= rows["slow"].p50_ms <= rows["slow"].p80_ms
    assert rows["robustft cpu"].p50_ms >= 2
    floor = rows["sleep"]
    assert floor.of_floor == floor.times_unit == 1
    for name in ("slow", "robustft cpu"):
        row = rows[name]
        assert row.rate == pytest.approx(1e6 / row.p50_ms / 1e6, rel=1e-2)
        assert row.of_floor == pytest.approx(floor.p50_ms / row.p50_ms, rel=2e-2)
        assert row.times_unit == pytest.approx(2 * row.p50_ms / floor.p50_ms, rel=2e-2)
        assert row.runs >= 3


def test_a_call_longer_than_the_share_runs_three_times_and_others_between():
    order = []

    def noting(name, seconds):
        def call():
            order.append(name)
            time.sleep(seconds)
            return [torch.ones(3)]

        return lambda: call

    rows = rows_of({"long": noting("long", 0.05), "short": noting("short", 0.001)}, seconds=0.03)
    assert rows["long"].runs == 3
    timed = "".join("l" if name == "long" else "s" for name in order)[4:]  # two calls to prepare
    turns = [a for a, b in zip(timed, "." + timed[:-1], strict=True) if a != b]
    assert turns == ["l", "s"] * 3


def test_errors_are_relative_to_the_largest_entry():
    truth = [torch.tensor([1.0, -100.0]).double(), torch.tensor(2.0).double()]
    found = [torch.tensor([2.0, -100.0]), torch.tensor(2.0)]
    assert relative_error(found, truth) == pytest.approx(0.01)
    found[1] = torch.tensor(float("nan"))
    assert relative_error(found, truth) == float("inf")
    with pytest.raises(ValueError, match="shape"):
        relative_error([torch.ones(1), torch.ones(())], truth)
    assert rows_of({"off": sleeper(0, 1.5)})["off"].largest_error == 0.5


def test_skipped_with_the_reason():
    def absent():
        raise ImportError("no such package")

    def failing():
        def call():
            raise RuntimeError("a line\nanother")

        return call

    rows = rows_of(
        {
            "absent": absent,
            "failing": failing,
            "wrong": sleeper(0, 1.5),
            "slow": sleeper(0.6),
            "good": sleeper(0),
        },
        tolerance=0.1,
        limit=0.4,
    )
    assert rows["absent"].skipped == "no such package"
    assert rows["failing"].skipped == "RuntimeError: a line"
    assert rows["wrong"].skipped.startswith("wrong: error 5.0e-01")
    assert rows["wrong"].largest_error == 0.5
    assert "the limit is 0 s" in rows["slow"].skipped
    assert rows["good"].skipped == ""
    timed = [name for name, row in rows.items() if row.p50_ms is not None]
    assert timed == ["sleep", "good"]


def test_only_some_providers_are_prepared():
    def never():
        raise AssertionError

    assert set(rows_of({"ours": sleeper(0), "theirs": never}, only=("ours",))) == {"sleep", "ours"}


def test_checks_are_compared_instead_of_the_call():
    rows = rows_of({"a": sleeper(0, 7.0)}, checks={"a": sleeper(0, 1.0)}, error_on="less")
    assert rows["a"].largest_error == 0
    assert rows["a"].error_on == "less"


def test_memory_alone():
    rows = rows_of({"a": sleeper(0)}, timed=False)
    assert rows["a"].extra_mb is not None
    assert rows["a"].p50_ms is None
    assert list(rows) == ["a"]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("megabytes", [8, 64])
def test_memory_is_the_peak_of_one_call(megabytes):
    size = megabytes * 1_000_000

    def call():
        bytearray(b"x") * size  # gone again before the call returns
        return [torch.ones(1)]

    call()
    assert megabytes - 1 <= memory.of_call(call, "cpu") <= megabytes + 3
    assert memory.of_call(lambda: torch.ones(1), "cpu") <= 2


def test_others_is_what_was_busy_less_our_own(monkeypatch):
    # All cores worked 6 s in 2 s, 3.5 s of it ours: 1.25 cores were others'.
    monkeypatch.setattr(machine, "_busy", iter([100.0, 106.0]).__next__)
    monkeypatch.setattr(machine, "_own", iter([20.0, 23.5]).__next__)
    monkeypatch.setattr(machine.time, "perf_counter", iter([50.0, 52.0]).__next__)
    assert MACHINE.others()() == 1.25


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs Linux's /proc")
def test_busy_and_own_both_see_this_process_work():
    busy, own = machine._busy(), machine._own()
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    assert machine._own() - own > 0.25
    assert machine._busy() - busy > 0.2  # ticks of 10 ms


def test_files_give_the_rows_back(tmp_path):
    rows = list(rows_of({"a": sleeper(0), "none": lambda: 1 / 0}).values())
    path = results.write(rows, "op-cpu", tmp_path)
    assert results.read(path) == rows
    assert (tmp_path / "op-cpu.json").read_text().count('"provider"') == len(rows)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["op-cpu.csv", "op-cpu.json"]
    path.write_text("op,provider\nx,y\n")
    with pytest.raises(ValueError, match="columns"):
        results.read(path)


@pytest.mark.parametrize(
    ("processor", "folder"),
    [
        ("Intel(R) Xeon(R) Processor, 2 cores", "intel-xeon"),
        ("Intel(R) Xeon(R) CPU E5-2670 v3 @ 2.30GHz, 24 cores", "intel-xeon-e5-2670-v3"),
        ("AMD EPYC, family 26 model 2, 2 cores", "amd-epyc-family-26-model-2"),
        ("NVIDIA H200", "nvidia-h200"),
        ("../..", "unknown"),
    ],
)
def test_every_processor_has_its_folder(processor, folder, tmp_path):
    assert results.place(results.FOLDER, processor) == results.FOLDER / folder
    assert results.place(tmp_path, processor) == tmp_path  # --out


def test_generations_of_one_name_are_told_apart():
    said = (
        "processor\t: 0\ncpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\n\nprocessor: 1\n"
    )
    assert machine._x86(said) == "AMD EPYC, family 26 model 2"


def row(provider, kind, p50, **more):
    return Row("op", "", "forward", "7x11", "float32", provider, kind, p50, p50, p50, 3, **more)


def test_tables_show_the_fastest_and_the_ratio():
    rows = [
        row("read", "floor", 1.0, floor="read"),
        row("torch", "peer", 30.0, times_unit=30.0),
        row("compiled", "peer", 20.0, times_unit=20.0, largest_error=1e-3),
        row("robustft cpu", "robustft", 8.0, times_unit=8.0, of_floor=0.125, extra_mb=12.5),
        Row("op", "", "forward", "7x11", "float32", "absent", "peer", skipped="not installed"),
    ]
    text = report.section(rows, "op-cpu")
    lines = [line for line in text.splitlines() if line.startswith("| 7x11")]
    assert lines == [
        "| 7x11 | 1.00 | 30.0 (30.0) | 20.0 (20.0) | **8.00 (8.00)** | 2.50 | 0.12 |",
        "| 7x11 | 1.00–1.00 (3) | 30.0–30.0 (3) | 20.0–20.0 (3) | 8.00–8.00 (3) |",
        "| 7x11 | 12.5 |",
        "| 7x11 | 1e-03 |",
    ]
    assert "- absent: not installed (everywhere)" in text


def test_the_document_is_rewritten_between_its_marks(tmp_path, monkeypatch):
    document = tmp_path / "performance.md"
    document.write_text(
        "before\n<!-- rows: op-cpu -->\nold\n<!-- end -->\nwords\n"
        "<!-- rows: none-cpu -->\n<!-- end -->\nafter\n"
    )
    monkeypatch.setattr(report, "DOCUMENT", document)
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    for processor in ("amd-b", "intel-a"):
        mine = [row("robustft cpu", "robustft", 8.0, processor=processor.upper())]
        results.write(mine, "op-cpu", tmp_path / processor)
    written = report.write(tmp_path)
    text = document.read_text()
    assert "old" not in text
    assert "| 7x11 | **8.00 (–)** |" in text
    assert text.index("**AMD-B**") < text.index("amd-b/op-cpu.svg") < text.index("**INTEL-A**")
    assert "Not measured yet (no `benchmarks/results/*/none-cpu.csv`)." in text
    assert text.startswith("before\n<!-- rows: op-cpu -->\n")
    assert text.endswith("<!-- end -->\nafter\n")
    counts = Counter(path.suffix for path in written)
    assert counts == {".svg": 2, ".png": 2, ".md": 1}
    before = document.read_text()
    report.write(tmp_path)
    assert document.read_text() == before


def test_shapes():
    assert shape_of("4096x768") == (4096, 768)
    for wrong in ("", "4096x", "a", "1x-2"):
        with pytest.raises(ValueError, match="shape"):
            shape_of(wrong)


def test_emptying_the_cache_writes_nothing():
    """What it wrote would be written back while the next call is timed."""

    class Mutations(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen += 1
            assert not func._schema.is_mutable, func
            return func(*args, **(kwargs or {}))

    flushing = harness.flush("cpu", 1 << 16)
    with Mutations() as mutations:
        flushing()
    assert mutations.seen


def test_a_run_that_is_stopped_leaves_the_rows_it_has(tmp_path, monkeypatch):
    cases = iter([case({"a": sleeper(0.001)}), case({"b": sleeper(0.001)})])

    def until_stopped(*_):
        yield next(cases)
        yield next(cases)
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmarks.vrf.cases", until_stopped)
    given = ["benchmarks", "vrf", "--quick", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", given)
    with pytest.raises(KeyboardInterrupt):
        main()
    (path,) = tmp_path.glob("*.csv")
    assert {row.provider for row in results.read(path)} >= {"a", "b"}
