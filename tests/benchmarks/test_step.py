"""The benchmark of whole steps, on the tiny model: every provider runs, losses are right."""

import pytest

from benchmarks import results, step
from benchmarks.harness import Options, measure
from benchmarks.machine import Machine

MACHINE = Machine("cpu", "a processor", "avx2", "torch 2.0", "abc")


@pytest.fixture(scope="module")
def rows():
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "MODEL", "robustft-tiny")
        for case in step.cases([(16,)], "cpu", True):
            found += measure(case, Options(seconds=0.01), MACHINE)
    return found


def test_every_provider_is_timed_beside_the_towers(rows):
    assert [row for row in rows if row.skipped] == []
    names = {row.provider for row in rows if row.kind != "floor"}
    assert {"torch eager", "open_clip ClipLoss", "robustft cpu", "robustft reference"} <= names
    assert {"robustft flyp", "robustft dive, teacher", "robustft dive, store"} <= names
    assert {"robustft grad_cache 2", "robustft grad_checkpointing", "robustft both"} <= names
    assert {row.floor for row in rows} == {"towers", "torch.mm"}
    for row in rows:
        assert row.p50_ms > 0
        assert row.times_unit > 0


def test_losses_alone_are_right_and_cost_less_than_the_towers(rows):
    alone = [row for row in rows if row.variant == "loss alone" and row.kind != "floor"]
    assert all(row.largest_error < 1e-3 for row in alone)
    assert min(row.times_unit for row in alone) < 1


def test_the_towers_operations_are_those_of_their_size(monkeypatch):
    """2 operations a weight and token forward, 4 backward."""
    monkeypatch.setattr(step, "MODEL", "robustft-tiny")
    world = step.World("cpu", 4)
    text = sum(p.numel() for p in world.model.transformer.parameters() if p.ndim == 2)
    least = 6 * text * world.clip.context_length
    assert least < world.operations < 40 * least
    world.step(world.contrast(step.CLIPLoss(), 4))()
    assert all(p.grad is None for p in world.model.parameters())


def test_rows_are_written_and_read(rows, tmp_path):
    assert results.read(results.write(rows, "step-cpu", tmp_path)) == rows
    from benchmarks import plot, report

    assert "robustft dive, store" in report.section(rows, "step-cpu")
    assert plot.draw(rows) is not None
