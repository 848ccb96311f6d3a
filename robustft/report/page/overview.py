"""The first screen: what was gained and lost, in a sentence and a small table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from robustft.accuracy import wilson_interval
from robustft.evaluate.results import headline as result
from robustft.report.names import Row, display, in_order, row_of
from robustft.report.page.section import Records, Report, Section
from robustft.report.page.sizes import named
from robustft.report.series import calibration_error, means_by_row
from robustft.report.table import Cell, Table, by_seed, cell_of, mark_best, rsa_of

_ZERO_SHOT: Row = ("zero-shot", None)
_FT: Row = ("ft", None)


@dataclass(frozen=True)
class Measure:
    """A column. said: its name within a sentence; roles: of the records that its mean is over;
    least: whether the smallest value is the best."""

    key: str
    name: str
    said: str
    roles: tuple[str, ...]
    least: bool = False

    @property
    def percent(self) -> bool:
        return self.key != "geometry"


MEASURES = (
    Measure("id", "ID", "ID", ("id",)),
    Measure("ood", "OOD", "OOD", ("ood",)),
    Measure("forgetting", "Other tasks", "other tasks", ("forgetting",)),
    Measure("geometry", "RSA", "RSA", ("geometry",)),
    Measure("ece", "ECE", "calibration", ("id", "ood"), least=True),
)
_SCORED = ("id", "ood", "forgetting")


def section(report: Report) -> Section:
    table = small_table(report.records)
    return Section(
        id="results",
        title="Results",
        template="overview.html",
        data={
            "headline": headline(table),
            "table": table,
            "display": display,
            "measures": {m.key: m for m in MEASURES if m.key in dict(table.columns).values()},
            "intervals": {} if table.seeds > 1 else intervals(report.records),
            "sets": {m.key: named(report.records, m.roles) for m in MEASURES},
        },
        folded=False,
    )


def by_measure(records: Records) -> dict[str, dict[Row, dict[int, float]]]:
    """Of every measure each row's value seed by seed."""
    chosen = [r for r in records if r["role"] != "ratio" and r.get("selected", True)]
    found: dict[str, dict[Row, dict[int, float]]] = {}
    for m in MEASURES:
        if m.key == "geometry":
            rows = in_order(row_of(r) for r in chosen if r["role"] == "geometry")
            found[m.key] = {row: _rsa(chosen, row) for row in rows}
        else:
            value_of = calibration_error if m.key == "ece" else result
            found[m.key] = means_by_row(chosen, m.roles, value_of)
    return found


def small_table(records: Records) -> Table:
    """A row for every method, a column for every measure that was taken."""
    values = by_measure(records)
    columns = tuple((m.name, m.key) for m in MEASURES if any(values[m.key].values()))
    chosen = [r for r in records if r["role"] != "ratio" and r.get("selected", True)]
    rows = in_order(row_of(r) for r in chosen)
    percent = {m.key: m.percent for m in MEASURES}
    cells = [
        [cell_of(values[key].get(row, {}).values(), percent=percent[key]) for _, key in columns]
        for row in rows
    ]
    marked = mark_best(cells, columns, rows)
    seeds = {r["seed"] for r in chosen}
    return Table(columns, tuple(zip(rows, marked, strict=True)), len(seeds))


def intervals(records: Records) -> dict[tuple[Row, str], tuple[float, float]]:
    """Of one seed's accuracies the 95 % interval, by row and column: the mean of the sets' Wilson
    intervals. That holds whether sets share images or not, and is wider than it need be where they
    do not. None where a set stands there by another measure, which is no share of samples."""
    ends: dict[tuple[Row, str], dict[str, tuple[float, float]]] = {}
    others = {
        (row_of(r), r["role"])
        for r in records
        if r["role"] in _SCORED and result(r) != r.get(f"{r['dataset']}:top1")
    }
    for r in records:
        value = r.get(f"{r.get('dataset')}:top1")
        known = value is not None and r["n"] is not None
        if known and r["role"] in _SCORED and r.get("selected", True):
            interval = wilson_interval(round(value * r["n"]), r["n"])
            ends.setdefault((row_of(r), r["role"]), {})[r["dataset"]] = interval
    found = {}
    for key in ends.keys() - others:
        low, high = zip(*ends[key].values(), strict=True)
        found[key] = statistics.fmean(low), statistics.fmean(high)
    return found


def headline(table: Table) -> dict[str, Any]:
    """The method with the highest mean of the accuracies that were measured, and what it gains and
    loses against the zero-shot model and against plain fine-tuning."""
    keys = [key for _, key in table.columns]
    means = {
        row: {key: cell for key, cell in zip(keys, cells, strict=True) if cell is not None}
        for row, cells in table.rows
    }
    scored = [key for key in _SCORED if key in keys]
    whole = {
        row: statistics.fmean(cells[key].mean for key in scored)
        for row, cells in means.items()
        if row != _ZERO_SHOT and all(key in cells for key in scored)
    }
    if not whole:
        return {"best": None, "against": []}
    best = max(whole, key=lambda row: whole[row])
    others = [row for row in (_ZERO_SHOT, _FT) if row in means and row != best]
    return {
        "best": display(best),
        "of": len(whole),
        "over": [m.said for m in MEASURES if m.key in scored],
        "against": [{"name": display(row), **_changes(means[best], means[row])} for row in others],
    }


def _changes(mine: Mapping[str, Cell], other: Mapping[str, Cell]) -> dict[str, list[str]]:
    """{"gains": ["ID 19.5", ...], "loses": [...]}, as printed; what prints as no change is left
    out."""
    changes: dict[str, list[str]] = {"gains": [], "loses": []}
    for m in MEASURES:
        if m.key not in mine or m.key not in other:
            continue
        scale, digits = (100.0, 1) if m.percent else (1.0, 3)
        change = scale * (mine[m.key].mean - other[m.key].mean)
        text = f"{abs(change):.{digits}f}"
        if float(text):
            better = (change < 0) == m.least
            changes["gains" if better else "loses"].append(f"{m.said} {text}")
    return changes


def _rsa(chosen: Records, row: Row) -> dict[int, float]:
    found = {seed: rsa_of(values) for seed, values in by_seed(chosen, row).items()}
    return {seed: value for seed, value in found.items() if value is not None}
