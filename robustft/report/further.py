"""Tables beside the main one: how calibrated a method is, and how robust."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from robustft.errors import InputError
from robustft.evaluate.summary import Baseline, Point, curve_area, forgetting, hypervolume
from robustft.report.corruptions import corruptions
from robustft.report.names import Row, in_order, row_of
from robustft.report.series import means_by_row, sets_of
from robustft.report.sets import settle
from robustft.report.table import Cell, Table, by_seed, cell_of, mark_best, role_mean

Records = Iterable[Mapping[str, Any]]
Column = tuple[tuple[str, str], Mapping[Row, Cell | None]]
"""A heading with its role, and a cell a row."""

# Measure, how it is called, and whether it is a share.
_CALIBRATION = (
    ("ece", "ECE", True),
    ("adaptive-ece", "adaptive ECE", True),
    ("nll", "NLL", False),
    ("brier", "Brier", False),
)
_ZERO_SHOT: Row = ("zero-shot", None)


@dataclass(frozen=True)
class Further:
    """A table with its title and a sentence or two on what its numbers are."""

    title: str
    text: str
    table: Table


def further(records: Records, baseline: Records | None = None) -> list[Further]:
    """The tables of calibration, robustness and corruptions, whatever was measured of them."""
    lines = settle(records)
    found = (
        (
            "Calibration",
            "The mean over the ID sets and over the OOD sets: expected calibration error over "
            "equal-width bins and over bins of equally many samples, in percent; negative "
            "log-likelihood in nats; Brier's score of all classes. Less is better.",
            calibration(lines),
        ),
        (
            "Robustness",
            "In percent. Area under the ID–OOD curve of a method's strengths α, and hypervolume of "
            "all its points, above an accuracy of 0; forgetting: the mean drop from the zero-shot "
            "model, of which less is better."
            + " Effective robustness: OOD accuracy beyond the baseline's line."
            * (baseline is not None),
            robustness(lines, baseline),
        ),
        *(
            (
                "Corruptions",
                "Accuracy in percent, the mean over the severities that were measured of each.",
                table,
            )
            for table in corruptions(lines)
        ),
    )
    return [Further(title, text, table) for title, text, table in found if table is not None]


def calibration(records: Records) -> Table | None:
    """How far confidence is from what happens, on the ID sets and on the OOD sets, the mean over
    each; the least is best. None where nothing was measured."""
    lines = settle(records)
    columns: list[Column] = []
    for role in ("id", "ood"):
        for measure, name, percent in _CALIBRATION:
            means = means_by_row(lines, (role,), partial(_value, measure))
            cells = {row: cell_of(seeds.values(), percent=percent) for row, seeds in means.items()}
            columns.append(((f"{role.upper()} {name}", "error"), cells))
    return _table(columns, lines)


def robustness(records: Records, baseline: Records | None = None) -> Table | None:
    """What ID and OOD accuracy say together (robustft.evaluate.summary), and the mean drop on the
    forgetting sets. None where nothing was measured.

    baseline: records of models of ordinary training on the same data sets, beyond whose line the
    effective robustness is. Errors: InputError where these are fewer than two.
    """
    lines = settle(records)
    chosen = _selected(lines)
    rows, sets = in_order(map(row_of, chosen)), sets_of(lines)
    curves = {row: _points(lines, row, sets) for row in rows}
    columns: list[Column] = []
    if baseline is not None:
        others = _selected(settle(baseline))
        found = [_points(others, row, sets) for row in in_order(map(row_of, others))]
        try:
            line = Baseline.fit(p for seeds in found for one in seeds.values() for p in one)
        except InputError as error:
            raise InputError(f"baseline: {error}, measured on the report's data sets") from error
        points = {row: _points(chosen, row, sets) for row in rows}
        gains = {
            row: cell_of(line.effective_robustness(one[-1]) for one in seeds.values())
            for row, seeds in points.items()
        }
        columns.append((("Effective robustness", "ood"), gains))
    areas = {
        row: cell_of(curve_area(one) for one in seeds.values() if len(one) > 1)
        for row, seeds in curves.items()
    }
    columns.append((("ID–OOD area", "ood"), areas))
    volumes = {row: cell_of(map(hypervolume, seeds.values())) for row, seeds in curves.items()}
    columns.append((("Hypervolume", "ood"), volumes))
    columns.append((("Forgetting", "dropped"), {row: cell_of(_drops(chosen, row)) for row in rows}))
    return _table(columns, lines)


def _value(measure: str, record: Mapping[str, Any]) -> float | None:
    value: float | None = record.get(f"{record['dataset']}:{measure}")
    return value


def _selected(records: Records) -> list[Mapping[str, Any]]:
    roles = ("id", "ood", "forgetting")
    return [r for r in records if r["role"] in roles and r.get("selected", True)]


def _points(
    records: Records, row: Row, sets: Mapping[str, Sequence[str]]
) -> dict[int, list[Point]]:
    """A row's (ID, OOD) accuracies seed by seed, one a strength α that was measured on all sets."""
    strengths: dict[Any, list[Mapping[str, Any]]] = {}
    for r in records:
        if r["role"] in ("id", "ood") and row_of(r) == row:
            strengths.setdefault(r.get("alpha"), []).append(r)
    points: dict[int, list[Point]] = {}
    for lines in strengths.values():
        for seed, values in by_seed(lines, row).items():
            inside, outside = (role_mean(values, role, sets[role]) for role in ("id", "ood"))
            if inside is not None and outside is not None:
                points.setdefault(seed, []).append((inside, outside))
    return points


def _drops(records: Sequence[Mapping[str, Any]], row: Row) -> list[float | None]:
    """How much each seed of a row has forgotten, against the zero-shot model of that seed, or of
    any: it is one and the same."""

    def kept(of: Row) -> dict[int, dict[str, float]]:
        return {
            seed: {name: v for (role, name), v in values.items() if role == "forgetting"}
            for seed, values in by_seed(records, of).items()
        }

    before = kept(_ZERO_SHOT)
    if not before:
        return []
    last = list(before.values())[-1]
    return [forgetting(before.get(seed, last), after) for seed, after in kept(row).items()]


def _table(columns: Sequence[Column], records: Records) -> Table | None:
    """The table of the columns and rows in which anything is."""
    full = [(head, cells) for head, cells in columns if any(cells.values())]
    rows = in_order(row for _, cells in full for row, cell in cells.items() if cell is not None)
    if not rows:
        return None
    heads = tuple(head for head, _ in full)
    marked = mark_best([[cells.get(row) for _, cells in full] for row in rows], heads, rows)
    seeds = {r["seed"] for r in _selected(records)}
    return Table(heads, tuple(zip(rows, marked, strict=True)), len(seeds))
