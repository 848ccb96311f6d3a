"""Accuracy under each corruption, where several of one data set were measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from robustft.data.corruptions.names import NAMES
from robustft.readable import readable
from robustft.report.names import in_order, row_of
from robustft.report.table import Table, cell_of, mark_best


def corruptions(records: Iterable[Mapping[str, Any]]) -> list[Table]:
    """For each data set whose corruptions stand together (robustft.report.sets) their mean, under
    the set's name, and a column for every corruption."""
    lines = [r for r in records if "top1_by_corruption" in r and r.get("selected", True)]
    return [
        _table(name, [r for r in lines if r["dataset"] == name])
        for name in dict.fromkeys(r["dataset"] for r in lines)
    ]


def _table(dataset: str, lines: list[Mapping[str, Any]]) -> Table:
    found = [name for name in NAMES if any(name in r["top1_by_corruption"] for r in lines)]
    heads = [(readable(dataset), "ood"), *((name.replace("-", " "), "ood") for name in found)]
    rows = in_order(row_of(r) for r in lines)
    cells = []
    for row in rows:
        seeds = {r["seed"]: r for r in lines if row_of(r) == row}  # of repeated ones the last
        cells.append(
            [
                cell_of([r.get(f"{dataset}:top1") for r in seeds.values()]),
                *(
                    cell_of([r["top1_by_corruption"].get(name) for r in seeds.values()])
                    for name in found
                ),
            ]
        )
    marked = mark_best(cells, heads, rows)
    return Table(
        tuple(heads), tuple(zip(rows, marked, strict=True)), len({r["seed"] for r in lines})
    )
