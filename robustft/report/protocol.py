"""Tables of protocols: accuracy over the number of shots, and base and novel classes with H."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from robustft.report.names import Row, in_order, row_of
from robustft.report.sets import settle
from robustft.report.table import Cell, Table, by_seed, cell_of, harmonic_cell, mark_best

BySeed = dict[int, float]


@dataclass(frozen=True)
class Measured:
    """The result lines of one data set, by its name in tables, with one number of shots."""

    data: str
    shots: int
    records: Sequence[dict[str, Any]]


def few_shot(cells: Sequence[Measured]) -> list[tuple[str, Table]]:
    """A table for the mean over the data sets, and one for each, under its heading; columns: ID
    accuracy by the number of shots. Where shifts were measured too, the same of their mean."""
    shots = list(dict.fromkeys(cell.shots for cell in cells))
    heads = [(f"{k} shot{'s' * (k > 1)}", "id") for k in shots]

    def by_shots(role: str) -> Callable[[Sequence[Measured], Row], list[Cell | None]]:
        def line(found: Sequence[Measured], row: Row) -> list[Cell | None]:
            means = [_mean([_accuracy(c, row, role) for c in found if c.shots == k]) for k in shots]
            return [cell_of(list(mean.values())) for mean in means]

        return line

    found = _tables(cells, heads, by_shots("id"))
    if any(r["role"] == "ood" for cell in cells for r in cell.records):
        shifted = _tables(cells, heads, by_shots("ood"))
        found += [(f"{name}, OOD mean", table) for name, table in shifted]
    return found


def base_to_novel(cells: Sequence[Measured]) -> list[tuple[str, Table]]:
    """The same with the columns base, novel and H (`harmonic_cell`)."""
    heads = [("Base", "id"), ("Novel", "forgetting"), ("H", "harmonic")]

    def line(found: Sequence[Measured], row: Row) -> list[Cell | None]:
        base, novel = (
            _mean([_accuracy(c, row, role) for c in found]) for role in ("id", "forgetting")
        )
        cells = [cell_of(list(values.values())) for values in (base, novel)]
        return [*cells, harmonic_cell(base, novel)]

    return _tables(cells, heads, line)


def _tables(
    cells: Sequence[Measured],
    heads: list[tuple[str, str]],
    line: Callable[[Sequence[Measured], Row], list[Cell | None]],
) -> list[tuple[str, Table]]:
    """One table a data set, after that of all together where there are several."""
    data = list(dict.fromkeys(cell.data for cell in cells))
    rows = in_order(row_of(r) for cell in cells for r in _chosen(cell))
    seeds = len({r["seed"] for cell in cells for r in _chosen(cell)})
    parts = [(name, [cell for cell in cells if cell.data == name]) for name in data]
    if len(data) > 1:
        parts.insert(0, (f"Mean of {len(data)} data sets", list(cells)))
    found = []
    for name, own in parts:
        lines = [line(own, row) for row in rows]
        marked = mark_best(lines, heads, rows)
        table = Table(tuple(heads), tuple(zip(rows, marked, strict=True)), seeds)
        found.append((name, table))
    return found


def _chosen(cell: Measured) -> list[dict[str, Any]]:
    """The lines of operating points."""
    return settle(r for r in cell.records if r["role"] != "ratio" and r.get("selected", True))


def _accuracy(cell: Measured, row: Row, role: str) -> BySeed:
    """Top-1 of a method by seed, the mean over the sets of a role that the seed has."""
    found: dict[int, list[float]] = {}
    for seed, values in by_seed(_chosen(cell), row).items():
        for (one, _), top1 in values.items():
            if one == role:
                found.setdefault(seed, []).append(top1)
    return {seed: statistics.fmean(values) for seed, values in found.items()}


def _mean(found: Sequence[BySeed]) -> BySeed:
    """The means of the seeds that all have."""
    seeds = [seed for seed in (found[0] if found else {}) if all(seed in one for one in found)]
    return {seed: statistics.fmean(one[seed] for one in found) for seed in seeds}
