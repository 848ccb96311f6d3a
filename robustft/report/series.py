"""The numbers of the report's figures: curves over α, points in the plane, means of a row."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from robustft.report.names import Row, group, in_order, row_of
from robustft.report.table import by_seed, ood_mean, role_mean, rsa_of

Records = Sequence[Mapping[str, Any]]


def sets_of(records: Records) -> dict[str, list[str]]:
    """The data sets that accuracies in and out of distribution are the mean of."""
    return {
        role: list(dict.fromkeys(r["dataset"] for r in records if r["role"] == role))
        for role in ("id", "ood")
    }


def calibration_error(record: Mapping[str, Any]) -> float | None:
    """The expected calibration error of a line, where it has one."""
    value: float | None = record.get(f"{record['dataset']}:ece")
    return value


def means_by_row(
    records: Records, roles: Sequence[str], value_of: Callable[[Mapping[str, Any]], float | None]
) -> dict[Row, dict[int, float]]:
    """Each row's mean over the data sets that have the value, seed by seed; seeds that lack a set
    are left out."""
    lines = [r for r in records if r["role"] in roles and r.get("selected", True)]
    sets = {r["dataset"] for r in lines if value_of(r) is not None}
    found: dict[Row, dict[int, float]] = {}
    for row in in_order(row_of(r) for r in lines):
        seeds: dict[int, dict[str, float]] = {}
        for r in lines:
            value = value_of(r)
            if row_of(r) == row and value is not None:
                seeds.setdefault(r["seed"], {})[r["dataset"]] = value
        means = {seed: statistics.fmean(v.values()) for seed, v in seeds.items() if set(v) == sets}
        if means:
            found[row] = means
    return found


def pairs(records: Records, row: Row, sets: Mapping[str, Sequence[str]]) -> np.ndarray:
    """[seeds, 2]: mean ID and mean OOD accuracy in percent, of seeds that have all sets."""
    found = []
    for values in by_seed(list(records), row).values():
        inside, outside = role_mean(values, "id", sets["id"]), ood_mean(values, sets["ood"])
        if inside is not None and outside is not None:
            found.append((100 * inside, 100 * outside))
    return np.array(found, dtype=float).reshape(-1, 2)


def bases(records: Records, method: str) -> list[str | None]:
    """The methods that an ensemble was built on; None for plain fine-tuning."""
    return list(dict.fromkeys(row_of(r)[1] for r in records if r.get("method") == method))


def with_strengths(records: Records) -> list[Row]:
    """Rows of single models that were measured at strengths α of their own."""
    return in_order(
        row_of(r)
        for r in records
        if r["role"] != "ratio" and r.get("alpha") is not None and group(row_of(r)) != "ensembles"
    )


def curve_of(
    records: Records, row: Row, sets: Mapping[str, Sequence[str]]
) -> list[tuple[float, np.ndarray]]:
    """(α, [seeds, 2] in percent) for every α measured, α ascending."""
    mine = [
        r
        for r in records
        if r["role"] != "ratio" and row_of(r) == row and r.get("alpha") is not None
    ]
    curve = []
    for alpha in sorted({round(r["alpha"], 6) for r in mine}):
        points = pairs([r for r in mine if round(r["alpha"], 6) == alpha], row, sets)
        if len(points):
            curve.append((alpha, points))
    return curve


def chosen_alpha(selected: Records, row: Row) -> float | None:
    """The α of a row's operating points, the mean over seeds."""
    alphas = {
        r["seed"]: r["alpha"]
        for r in selected
        if r["role"] == "id" and row_of(r) == row and r.get("alpha") is not None
    }
    return statistics.fmean(alphas.values()) if alphas else None


def pooled(lines: Records, base: str, bins: int = 8) -> list[tuple[float, float, float, float]]:
    """(distance, samples per seed, ratio, bin width) of one base, the seeds' bins merged."""
    mine = [r for r in lines if (r.get("base") or "ft") == base and r["n"] > 0]
    if not mine:
        return []
    seeds = len({r["seed"] for r in mine})
    distance = np.array([r["distance"] for r in mine])
    low, high = float(distance.min()), float(distance.max())
    if seeds == 1:
        bins = len(mine)
        which = np.argsort(np.argsort(distance, kind="stable"), kind="stable")
    else:
        which = np.clip(((distance - low) / max(high - low, 1e-12) * bins).astype(int), 0, bins - 1)
    width = (high - low) / max(bins - (seeds == 1), 1) or 1.0
    rows = []
    for b in range(bins):
        inside = [r for r, w in zip(mine, which, strict=True) if w == b]
        if not inside:
            continue
        n = np.array([r["n"] for r in inside], dtype=float)
        hits_ft = float(sum(r["n"] * (r["accuracy_finetuned"] or 0.0) for r in inside))
        hits_zs = float(sum(r["n"] * (r["accuracy_zeroshot"] or 0.0) for r in inside))
        if hits_zs > 0:
            center = float(np.average([r["distance"] for r in inside], weights=n))
            rows.append((center, float(n.sum()) / seeds, hits_ft / hits_zs, width))
    return rows


def geometry_by_row(records: Records) -> list[tuple[Row, list[float], list[float]]]:
    """Each row's RSA, seed by seed the mean over its data sets: Euclidean, of rows that have it,
    and cosine."""
    lines = [r for r in records if r["role"] == "geometry" and r.get("selected", True)]
    found = []
    for row in in_order(row_of(r) for r in lines):
        euclidean = [x for v in by_seed(lines, row).values() if (x := rsa_of(v)) is not None]
        if euclidean:
            found.append((row, euclidean, _cosine_by_seed(r for r in lines if row_of(r) == row)))
    return found


def _cosine_by_seed(lines: Iterable[Mapping[str, Any]]) -> list[float]:
    """Cosine RSA of one row, the mean over its data sets seed by seed."""
    found: dict[int, list[float]] = {}
    for line in lines:
        if line["RSA:cosine"] is not None:
            found.setdefault(line["seed"], []).append(line["RSA:cosine"])
    return [statistics.fmean(values) for values in found.values()]
