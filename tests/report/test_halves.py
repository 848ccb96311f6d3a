"""H of base and novel classes, where a report has both halves."""

import pytest

from robustft.report.protocol import Measured, base_to_novel, few_shot
from robustft.report.table import make_table


def record(dataset, role, top1, seed=0, method="ft"):
    found = {"dataset": dataset, "role": role, "split": "test", "method": method, "base": None}
    return found | {"alpha": None, "selected": True, "seed": seed, "n": 9, f"{dataset}:top1": top1}


def halves(name, *pairs):
    return [
        record(f"{name} ({half})", role, top1, seed)
        for seed, pair in enumerate(pairs)
        for half, role, top1 in zip(("base", "novel"), ("id", "forgetting"), pair, strict=True)
    ]


def shown(table):
    return {
        name: cell.text for (name, _), cell in zip(table.columns, table.rows[0][1], strict=True)
    }


def test_a_table_has_h_beside_both_halves_alone():
    table = make_table([*halves("Pets", (0.9, 0.6), (0.8, 0.7)), record("Inks", "forgetting", 0.5)])
    # Of the means 85 and 65; the seeds' own are 72 and 74.667.
    assert shown(table)["Pets H"] == "73.7 ± 1.9"
    one = [line for line in halves("Pets", (0.9, 0.6)) if line["role"] == "id"]
    assert not [name for name, _ in make_table(one).columns if name.endswith("H")]
    other = [*one, record("Cars (novel)", "forgetting", 0.5)]
    assert not [name for name, _ in make_table(other).columns if name.endswith("H")]


def test_the_published_mean_rows_of_cocoop_follow_from_their_columns():
    """Table 3a of CoCoOp (arXiv 2203.05557): base, novel and H of the mean over eleven sets."""
    for base, novel, h in ((69.34, 74.22, 71.70), (82.69, 63.22, 71.66), (80.47, 71.69, 75.83)):
        ((_, table),) = base_to_novel([Measured("x", 16, halves("x", (base / 100, novel / 100)))])
        assert 100 * table.rows[0][1][2].mean == pytest.approx(h, abs=0.005)


def test_a_protocols_mean_is_over_sets_seed_by_seed():
    cells = [
        Measured("A", 1, [record("A", "id", 0.2, 0), record("A", "id", 0.4, 1)]),
        Measured("B", 1, [record("B", "id", 0.6, 0), record("B", "id", 0.6, 1)]),
        Measured("A", 2, [record("A", "id", 0.5, 0)]),
        Measured("B", 2, []),
    ]
    found = few_shot(cells)
    assert [name for name, _ in found] == ["Mean of 2 data sets", "A", "B"]
    mean, a, b = (table.rows[0][1] for _, table in found)
    assert mean[0].text == "45.0 ± 7.1"
    assert mean[1] is None, "no mean where a set is missing"
    assert (a[0].text, a[1].text, b[0].text, b[1]) == ("30.0 ± 14.1", "50.0", "60.0 ± 0.0", None)
