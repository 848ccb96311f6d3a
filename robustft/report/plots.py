"""The report's figures. Each function takes result records and returns a figure, or None where
the records it needs are absent.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from robustft.report import bars
from robustft.report.labels import label_points, spread_out
from robustft.report.names import (
    LOOKS,
    Row,
    colour,
    display,
    in_order,
    marker,
    row_of,
)
from robustft.report.series import (
    bases,
    chosen_alpha,
    curve_of,
    pairs,
    pooled,
    sets_of,
    with_strengths,
)
from robustft.report.style import subplots
from robustft.report.text import short

Records = Sequence[Mapping[str, Any]]


def id_against_ood(records: Records) -> Any | None:
    """Mean ID against mean OOD accuracy: star zero-shot, diamonds fine-tuned, WiSE-FT's curve."""
    chosen = [r for r in records if r["role"] in ("id", "ood") and r.get("selected", True)]
    sets = sets_of(records)
    rows = [
        (row, points)
        for row in in_order(row_of(r) for r in chosen)
        if len(points := pairs(chosen, row, sets))
    ]
    if not rows:
        return None
    mixed = [("wise-ft", base) for base in bases(records, "wise-ft")]
    curves = [
        (row, curve)
        for row in [*mixed, *with_strengths(records)]
        if len(curve := curve_of(records, row, sets)) > 1
    ]
    figure, axes = subplots(1, 1, (7.6, 5.4))
    ax = axes[0][0]
    avoid: list[tuple[float, float]] = []
    for row, curve in curves:
        xy = np.array([[np.mean(p[:, 0]), np.mean(p[:, 1])] for _, p in curve])
        color = colour(row)
        ax.plot(*xy.T, "-", color=color, lw=1.4, alpha=0.75, zorder=2)
        ax.plot(*xy.T, "o", color=color, ms=3, zorder=3)
        avoid += [tuple(p) for p in _dense(xy)]
    means, texts, colors = [], [], []
    for row, points in rows:
        x, y = points.mean(axis=0)
        color = colour(row)
        if len(points) > 1:
            sx, sy = points.std(axis=0, ddof=1)
            ax.errorbar(x, y, xerr=sx, yerr=sy, color=color, lw=0.9, alpha=0.55, zorder=3)
            reach = (-1.0, -0.5, 0.5, 1.0)
            avoid += [(x + t * sx, y) for t in reach] + [(x, y + t * sy) for t in reach]
        shape = marker(row[0])
        ax.plot(
            x,
            y,
            shape,
            color=color,
            ms={"*": 15, "D": 7.5}.get(shape, 8),
            mec="white",
            mew=0.8,
            zorder=5,
        )
        means.append((float(x), float(y)))
        texts.append(short(display(row)))
        colors.append(color)
    ax.set_xlabel(f"in-distribution accuracy, % ({short(', '.join(sets['id']), 60)})")
    count = len(sets["ood"])
    ax.set_ylabel(f"out-of-distribution accuracy, % (mean of {count} set{'s' * (count > 1)})")
    ax.set_title("In- against out-of-distribution accuracy")
    everything = np.array(means)
    if avoid:
        everything = np.concatenate([everything, np.array(avoid)])
    _limits(ax, everything)
    label_points(ax, means, texts, colors, avoid=avoid)
    return figure


def alpha_sweep(records: Records) -> Any | None:
    """Accuracy over α of WiSE-FT and OSE on one base model, and of its own strengths where it has
    some (R-Adapter), with its VRF as a line beside them."""
    sets = sets_of(records)
    own = [method for method, _ in with_strengths(records)]
    built_on = dict.fromkeys([None, *bases(records, "wise-ft"), *bases(records, "ose"), *own])
    found = []
    for base in built_on:
        rows: list[Row] = [("wise-ft", base), ("ose", base), (base or "ft", None)]
        curves = {row: c for row in rows if len(c := curve_of(records, row, sets)) > 1}
        if curves:
            found.append((base, curves))
    if not found:
        return None
    figure, axes = subplots(len(found), 2, (9.6, 3.9 * len(found)))
    for line, (base, curves) in zip(axes, found, strict=True):
        selected = [r for r in records if r.get("selected", True)]
        for axis, ax in enumerate(line):
            for row, curve in curves.items():
                alphas = np.array([alpha for alpha, _ in curve])
                values = [points[:, axis] for _, points in curve]
                mean = np.array([v.mean() for v in values])
                color = colour((row[0], None))
                if max(len(v) for v in values) > 1:
                    std = np.array([v.std(ddof=1) if len(v) > 1 else 0.0 for v in values])
                    ax.fill_between(alphas, mean - std, mean + std, color=color, alpha=0.13, lw=0)
                shape = marker(row[0])
                ax.plot(alphas, mean, "-" + shape, color=color, ms=3.5, lw=1.6, zorder=3)
                at = chosen_alpha(selected, row)
                point = pairs(selected, row, sets)
                if at is not None and len(point):
                    ax.plot(
                        at,
                        point[:, axis].mean(),
                        shape,
                        color="white",
                        mec=color,
                        mew=1.8,
                        ms=9,
                        zorder=5,
                    )
            vrf = pairs(selected, ("vrf", base), sets)
            if len(vrf):
                height = float(vrf[:, axis].mean())
                ax.axhline(height, color=LOOKS["vrf"].colour, lw=1.6, ls=(0, (5, 2)), zorder=4)
                if len(vrf) > 1:
                    wide = float(vrf[:, axis].std(ddof=1))
                    ax.axhspan(
                        height - wide,
                        height + wide,
                        color=LOOKS["vrf"].colour,
                        alpha=0.10,
                        lw=0,
                        zorder=1,
                    )
            model = short(display((base or "ft", None)))
            ax.set_title(f"{('In', 'Out of')[axis]} distribution{'' if axis == 0 else ' (mean)'}")
            ax.set_xlabel(f"α (0 zero-shot, 1 {model})")
            ax.set_xlim(-0.03, 1.03)
            ax.margins(y=0.08)
            _name_lines(ax, curves, vrf, axis)
        line[0].set_ylabel("accuracy, %")
    return figure


def accuracy_ratio(records: Records) -> Any | None:
    """Fine-tuned over zero-shot accuracy against the distance to the failures; counts below."""
    lines = [r for r in records if r["role"] == "ratio" and r["distance"] is not None]
    tuned = list(dict.fromkeys(r.get("base") or "ft" for r in lines))
    panels = [(base, rows) for base in tuned if (rows := pooled(lines, base))]
    if not panels:
        return None
    figure, axes = subplots(
        2, len(panels), (5.2 * len(panels) + 0.8, 4.8), height_ratios=[3, 1], sharex="col"
    )
    for i, (base, rows) in enumerate(panels):
        top, low = axes[0][i], axes[1][i]
        distance, count, ratio, width = (np.array(x) for x in zip(*rows, strict=True))
        color = colour((base, None))
        top.axhline(1.0, color="#888888", lw=1, ls=(0, (4, 3)))
        top.plot(distance, ratio, "-o", color=color, lw=1.8, ms=5)
        top.set_title(f"{short(display((base, None)))} against zero-shot")
        bars = low.bar(distance, count, width=0.85 * width, color=color, alpha=0.35)
        low.bar_label(bars, [f"{c:.0f}" for c in count], fontsize=8, color="#444444", padding=1)
        low.margins(y=0.3)
        low.grid(visible=False)
        low.set_yticks([])
        low.spines["left"].set_visible(False)
        low.set_xlabel("distance to the zero-shot failures")
        top.margins(y=0.12)
    axes[0][0].set_ylabel("accuracy ratio\nfine-tuned / zero-shot")
    axes[1][0].set_ylabel("samples")
    return figure


FIGURES: dict[str, Callable[[Records], Any | None]] = {
    "id-ood": id_against_ood,
    "alpha": alpha_sweep,
    "ratio": accuracy_ratio,
    "geometry": bars.geometry_kept,
    "forgetting": bars.forgotten,
    "calibration": bars.calibration,
}
"""File name and function of every figure of the report."""


def _name_lines(ax: Any, curves: Mapping[Row, Any], vrf: np.ndarray, axis: int) -> None:
    """Names at the right end of the lines, moved apart where the ends meet."""
    ends = [
        (
            float(curve[-1][1][:, axis].mean()),
            short(display((method, None))),
            colour((method, None)),
        )
        for (method, _), curve in curves.items()
    ]
    if len(vrf):
        ends.append((float(vrf[:, axis].mean()), "VRF", LOOKS["vrf"].colour))
    low, high = ax.get_ylim()
    # 11 points of text height on an axis of about 3 inches.
    gap = 0.062 * (high - low)
    heights = spread_out([y for y, _, _ in ends], gap, low, high)
    for (_, text, color), height in zip(ends, heights, strict=True):
        ax.annotate(
            text,
            (1.0, height),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=color,
            annotation_clip=False,
        )


def _dense(xy: np.ndarray, steps: int = 6) -> np.ndarray:
    """Points along a polyline, for labels to keep clear of."""
    parts = [np.linspace(a, b, steps, endpoint=False) for a, b in itertools.pairwise(xy)]
    return np.concatenate([*parts, xy[-1:]])


def _limits(ax: Any, xy: np.ndarray) -> None:
    """Room for the labels around the outermost points."""
    for values, setter in ((xy[:, 0], ax.set_xlim), (xy[:, 1], ax.set_ylim)):
        low, high = float(values.min()), float(values.max())
        pad = 0.09 * (high - low) or 1.0
        setter(low - pad, high + pad)
