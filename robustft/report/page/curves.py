"""The section of curves: ID against OOD, accuracy over α, the accuracy ratio."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from robustft.report.names import Row, colour, display, in_order, marker, row_of
from robustft.report.page.chart import Chart, Point, Series
from robustft.report.page.section import Records, Report, Section
from robustft.report.page.sizes import counted
from robustft.report.series import (
    bases,
    chosen_alpha,
    curve_of,
    pairs,
    pooled,
    sets_of,
    with_strengths,
)
from robustft.report.text import short


def section(report: Report) -> Section | None:
    charts = [*_plane(report.records), *_strengths(report.records), *_ratios(report.records)]
    if not charts:
        return None
    return Section("curves", "Curves", "curves.html", {"charts": charts}, folded=False)


def _plane(records: Records) -> list[Chart]:
    """ID against OOD accuracy, with the curves of what was measured at several α."""
    sets = sets_of(records)
    chosen = [r for r in records if r["role"] in ("id", "ood") and r.get("selected", True)]
    mixed: list[Row] = [("wise-ft", base) for base in bases(records, "wise-ft")]
    curved = {*mixed, *with_strengths(records)}
    series = []
    for row in in_order(row_of(r) for r in chosen):
        found = pairs(chosen, row, sets)
        if not len(found):
            continue
        points = []
        if row in curved and len(curve := curve_of(records, row, sets)) > 1:
            for alpha, each in curve:
                said = f"{display(row)}, α = {alpha:g}: {_both(each)}"
                points.append(Point(*_mean(each), said, kind="small"))
        own = Point(*_mean(found), f"{display(row)}: {_both(found)}", _std(found))
        look = (display(row), colour(row), marker(row[0]))
        series.append(Series(*look, [*points, own], "line" if points else ""))
    if not series:
        return []
    caption = (
        f"{counted(records, ('id', 'ood'))}. Lines go from the zero-shot model to the fine-tuned "
        "one by their strength α; bars are one standard deviation over seeds."
    )
    return [
        Chart(
            "id-ood",
            "In distribution and out of it",
            "in-distribution accuracy, %",
            "out-of-distribution accuracy, %",
            series,
            caption,
        )
    ]


def _strengths(records: Records) -> list[Chart]:
    """Accuracy over α, in distribution and out of it, for every base model."""
    sets = sets_of(records)
    selected = [r for r in records if r.get("selected", True)]
    own = [method for method, _ in with_strengths(records)]
    charts: list[Chart] = []
    for base in dict.fromkeys([None, *bases(records, "wise-ft"), *bases(records, "ose"), *own]):
        rows: list[Row] = [("wise-ft", base), ("ose", base), (base or "ft", None)]
        curves = {row: c for row in rows if len(c := curve_of(records, row, sets)) > 1}
        if not curves:
            continue
        model = short(display((base or "ft", None)), 24)
        for axis, where in enumerate(("in distribution", "out of distribution")):
            series = []
            for row, curve in curves.items():
                points = [_on_curve(row, alpha, each[:, axis]) for alpha, each in curve]
                at, there = chosen_alpha(selected, row), pairs(selected, row, sets)
                if at is not None and len(there):
                    text = f"{display(row)}, chosen α = {at:.3g}: {_one(there[:, axis])} %"
                    points.append(Point(at, float(there[:, axis].mean()), text, kind="open"))
                look = (display(row), colour((row[0], None)), marker(row[0]))
                series.append(Series(*look, points, "line"))
            vrf = pairs(selected, ("vrf", base), sets)
            if len(vrf):
                text = f"{display(('vrf', base))}, weighed by sample: {_one(vrf[:, axis])} %"
                level = float(vrf[:, axis].mean())
                ends = [Point(x, level, text, kind="small") for x in (0.0, 1.0)]
                look = (display(("vrf", base)), colour(("vrf", None)), marker("vrf"))
                series.append(Series(*look, ends, "dashed"))
            marked = any(p.kind == "open" for s in series for p in s.points)
            charts.append(
                Chart(
                    f"alpha-{len(charts)}",
                    f"{model} over α, {where}",
                    f"α (0 zero-shot, 1 {model})",
                    "accuracy, %",
                    series,
                    f"{counted(records, (('id', 'ood')[axis],))}."
                    + marked * " Open markers: the chosen α, the mean over seeds.",
                )
            )
    return charts


def _ratios(records: Records) -> list[Chart]:
    """Fine-tuned over zero-shot accuracy against the distance to the zero-shot failures."""
    lines = [r for r in records if r["role"] == "ratio" and r["distance"] is not None]
    series = []
    for base in dict.fromkeys(r.get("base") or "ft" for r in lines):
        row: Row = (base, None)
        points = [
            Point(
                at,
                ratio,
                f"{display(row)}, distance {at:.3g}: ratio {ratio:.2f}, n = {n:.0f}",
                kind="small",
            )
            for at, n, ratio, _ in pooled(lines, base)
        ]
        if points:
            series.append(Series(display(row), colour(row), marker(base), points, "line"))
    if not series:
        return []
    caption = (
        "Accuracy of the fine-tuned over that of the zero-shot model by the distance to the "
        "zero-shot failures, on all ID and OOD images; where it falls, VRF has something to work "
        "with. Each point says its n, per seed."
    )
    return [
        Chart(
            "ratio",
            "Accuracy ratio by distance",
            "distance to the zero-shot failures",
            "fine-tuned / zero-shot",
            series,
            caption,
            level=1.0,
        )
    ]


def _on_curve(row: Row, alpha: float, values: np.ndarray) -> Point:
    text = f"{display(row)}, α = {alpha:g}: {_one(values)} %"
    std = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return Point(alpha, float(values.mean()), text, (0.0, std), "small")


def _mean(found: np.ndarray) -> tuple[float, float]:
    x, y = found.mean(axis=0)
    return float(x), float(y)


def _std(found: np.ndarray) -> tuple[float, float]:
    if len(found) < 2:
        return 0.0, 0.0
    x, y = found.std(axis=0, ddof=1)
    return float(x), float(y)


def _one(values: Sequence[float] | np.ndarray) -> str:
    std = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{std}"


def _both(found: np.ndarray) -> str:
    return f"ID {_one(found[:, 0])} %, OOD {_one(found[:, 1])} %"
