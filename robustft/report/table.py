"""One table of all methods: markdown for people, rows and cells for the HTML page."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from robustft.evaluate.results import headline, headline_name
from robustft.evaluate.summary import harmonic_mean
from robustft.report.names import Row, display, group, in_order, row_of
from robustft.report.sets import settle
from robustft.report.text import columns, markdown, readable

# These two never move the image encoder: they keep all there is by construction.
_FROZEN = ("zero-shot", "linear-probe")
# The roles of columns in which they do not compete.
_KEPT = ("geometry", "dropped")

# What a data set's halves of the classes are called (robustft.data.registry.load).
BASE, NOVEL = " (base)", " (novel)"

# In columns of these roles the lowest value is the best.
_LEAST = ("ece", "mce", "error", "dropped")

# From so many rows on a table has headings.
_LONG = 14


@dataclass(frozen=True)
class Cell:
    """A mean over seeds with its sample standard deviation (None with one seed)."""

    mean: float
    std: float | None
    percent: bool
    best: bool = False

    @property
    def text(self) -> str:
        scale, digits = (100.0, 1) if self.percent else (1.0, 3)
        text = f"{self.mean * scale:.{digits}f}"
        return text if self.std is None else f"{text} ± {self.std * scale:.{digits}f}"


@dataclass(frozen=True)
class Table:
    """Column headings with their role, and rows of cells (None where nothing was measured)."""

    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[Row, tuple[Cell | None, ...]], ...]
    seeds: int

    def sections(self) -> list[tuple[str | None, list[tuple[Row, tuple[Cell | None, ...]]]]]:
        """The rows under their groups' headings; a short table is one section without."""
        if len(self.rows) < _LONG:
            return [(None, list(self.rows))]
        found = itertools.groupby(self.rows, key=lambda line: group(line[0]))
        return [(name.capitalize(), list(lines)) for name, lines in found]

    def markdown(self) -> str:
        head = ["Method", *(markdown(name) for name, _ in self.columns)]
        body = []
        for heading, lines in self.sections():
            if heading is not None:
                body.append([f"*{heading}*", *("" for _ in self.columns)])
            body += [[markdown(display(row)), *map(_markdown, cells)] for row, cells in lines]
        widths = [max(3, *(columns(line[i]) for line in [head, *body])) for i in range(len(head))]
        rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
        written = [_line(head, widths), _line(rule, widths), *(_line(b, widths) for b in body)]
        return "\n".join(written) + "\n"


def table(results: Iterable[Mapping[str, Any]]) -> str:
    """The markdown table of result records; the best value of each column is bold.

    Accuracies are percentages, mean ± sample standard deviation where there are several seeds; an
    ensemble's curve enters with its selected point alone.
    """
    return make_table(results).markdown()


def make_table(results: Iterable[Mapping[str, Any]]) -> Table:
    """The table itself. Columns: ID sets, OOD sets, their mean, mCE, forgetting sets, H of base
    and novel classes, RSA."""
    chosen = settle(r for r in results if r["role"] != "ratio" and r.get("selected", True))
    sets = {
        role: list(dict.fromkeys(r["dataset"] for r in chosen if r["role"] == role))
        for role in ("id", "ood", "forgetting", "geometry")
    }
    what = dict.fromkeys((name for role in sets.values() for name in role), "")
    what |= {r["dataset"]: f", {named}" for r in chosen if (named := headline_name(r))}
    heads = [(f"{readable(name)}{what[name]} (ID)", "id") for name in sets["id"]]
    short = _short(sets["ood"], sets["id"], sets["forgetting"])
    heads += [(f"{one}{what[name]}", "ood") for one, name in zip(short, sets["ood"], strict=True)]
    if len(sets["ood"]) > 1:
        heads.append(("OOD mean", "ood-mean"))
    corrupted = [name for name in sets["ood"] if any(f"{name}:mce" in r for r in chosen)]
    heads += [(f"{readable(name)} mCE", "mce") for name in corrupted]
    heads += [(f"{readable(name)}{what[name]}", "forgetting") for name in sets["forgetting"]]
    halves = [
        (name, f"{name.removesuffix(BASE)}{NOVEL}") for name in sets["id"] if name.endswith(BASE)
    ]
    halves = [(base, novel) for base, novel in halves if novel in sets["forgetting"]]
    heads += [(f"{readable(base.removesuffix(BASE))} H", "harmonic") for base, _ in halves]
    if sets["geometry"]:
        heads.append(("RSA", "geometry"))

    rows = in_order(row_of(r) for r in chosen)
    seeds = {r["seed"] for r in chosen}
    cells: list[list[Cell | None]] = []
    for row in rows:
        values = by_seed(chosen, row)
        line: list[Cell | None] = []
        for role in ("id", "ood"):
            line += [cell_of([v.get((role, name)) for v in values.values()]) for name in sets[role]]
        if len(sets["ood"]) > 1:
            line.append(cell_of([ood_mean(v, sets["ood"]) for v in values.values()]))
        line += [cell_of(_by_key(chosen, row, f"{name}:mce")) for name in corrupted]
        line += [
            cell_of([v.get(("forgetting", name)) for v in values.values()])
            for name in sets["forgetting"]
        ]
        for base, novel in halves:
            line.append(
                harmonic_cell(
                    {seed: v[("id", base)] for seed, v in values.items() if ("id", base) in v},
                    {s: v[key] for s, v in values.items() if (key := ("forgetting", novel)) in v},
                )
            )
        if sets["geometry"]:
            line.append(cell_of([rsa_of(v) for v in values.values()], percent=False))
        cells.append(line)
    marked = mark_best(cells, heads, rows)
    return Table(tuple(heads), tuple(zip(rows, marked, strict=True)), len(seeds))


Values = dict[tuple[str, str], float]
"""One row's numbers of one seed, by role and data set."""


def by_seed(records: Sequence[Mapping[str, Any]], row: Row) -> dict[int, Values]:
    """The numbers of one row, seed by seed; of repeated records the last one counts."""
    found: dict[int, Values] = {}
    for r in records:
        if r["role"] == "ratio" or row_of(r) != row:
            continue
        value = r.get("RSA:euclidean") if r["role"] == "geometry" else headline(r)
        values = found.setdefault(r["seed"], {})
        if value is not None and math.isfinite(value):
            values[(r["role"], r["dataset"])] = float(value)
        else:
            values.pop((r["role"], r["dataset"]), None)
    return found


def _by_key(records: Sequence[Mapping[str, Any]], row: Row, key: str) -> list[float | None]:
    """One field of one row's records, seed by seed; of repeated records the last one counts."""
    found = {r["seed"]: r[key] for r in records if key in r and row_of(r) == row}
    return list(found.values())


def ood_mean(values: Values, names: Sequence[str]) -> float | None:
    """The plain mean over the OOD sets, or None unless all of them are there."""
    return role_mean(values, "ood", names)


def role_mean(values: Values, role: str, names: Sequence[str]) -> float | None:
    """The plain mean over the sets of a role, or None unless all of them are there."""
    found = [values.get((role, name)) for name in names]
    present = [v for v in found if v is not None]
    return statistics.fmean(present) if present and len(present) == len(found) else None


def rsa_of(values: Values) -> float | None:
    """Euclidean RSA, the mean over the data sets it was measured on."""
    found = [value for (role, _), value in values.items() if role == "geometry"]
    return statistics.fmean(found) if found else None


def _short(names: Sequence[str], homes: Sequence[str], others: Sequence[str]) -> list[str]:
    """ "Digits-noise" is "noise" beside the ID set "Digits", where no other set is called that."""
    shorter = []
    for name in names:
        whole = name
        for home in homes:
            name = name.removeprefix(f"{home}-") or name
        shorter.append(name if name not in (*names, *others) or name == whole else whole)
    once = [a if shorter.count(a) == 1 else b for a, b in zip(shorter, names, strict=True)]
    return [readable(name if name not in others else f"{name} (OOD)") for name in once]


def cell_of(values: Iterable[float | None], *, percent: bool = True) -> Cell | None:
    """The cell of a row's seeds; None where no one has a value."""
    present = [v for v in values if v is not None]
    if not present:
        return None
    std = statistics.stdev(present) if len(present) > 1 else None
    return Cell(statistics.fmean(present), std, percent)


def harmonic_cell(base: Mapping[int, float], novel: Mapping[int, float]) -> Cell | None:
    """H of accuracies on base and novel classes by seed: the harmonic mean of their means, as
    CoCoOp (arXiv 2203.05557) averages; its deviation is that of each seed's own."""
    spread = cell_of([harmonic_mean([base[seed], novel[seed]]) for seed in base if seed in novel])
    if spread is None:
        return None
    means = [statistics.fmean(values.values()) for values in (base, novel)]
    return Cell(harmonic_mean(means), spread.std, percent=True)


def mark_best(
    cells: Sequence[Sequence[Cell | None]], columns: Sequence[tuple[str, str]], rows: Sequence[Row]
) -> list[tuple[Cell | None, ...]]:
    """Mark the best value of each column as printed, so that equal prints are equally bold."""
    marked = [list(line) for line in cells]
    for i, (_, role) in enumerate(columns):
        contest = [
            (line, cell)
            for row, line in zip(rows, marked, strict=True)
            if (cell := line[i]) is not None and not (role in _KEPT and row[0] in _FROZEN)
        ]
        if len(contest) < 2:
            continue
        best = min if role in _LEAST else max
        top = best(_printed(cell) for _, cell in contest)
        for line, cell in contest:
            if _printed(cell) == top:
                line[i] = Cell(cell.mean, cell.std, cell.percent, best=True)
    return [tuple(line) for line in marked]


def _printed(cell: Cell) -> float:
    return round(cell.mean * 100, 1) if cell.percent else round(cell.mean, 3)


def _markdown(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    return f"**{cell.text}**" if cell.best else cell.text


def _line(parts: Sequence[str], widths: Sequence[int]) -> str:
    gaps = [" " * (width - columns(part)) for part, width in zip(parts, widths, strict=True)]
    padded = [parts[0] + gaps[0]]
    padded += [gap + part for part, gap in zip(parts[1:], gaps[1:], strict=True)]
    return "| " + " | ".join(padded) + " |"
