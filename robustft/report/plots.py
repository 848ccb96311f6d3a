"""The report's figures. Each function takes result records and returns a figure, or None where
the records it needs are absent.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from robustft.report import bars
from robustft.report.labels import label_points, spread_out
from robustft.report.names import (
    LOOKS,
    Row,
    colour,
    display,
    group,
    in_order,
    marker,
    row_of,
)
from robustft.report.style import subplots
from robustft.report.table import Values, by_seed, ood_mean, rsa_of
from robustft.report.text import short

Records = Sequence[Mapping[str, Any]]


def id_against_ood(records: Records) -> Any | None:
    """Mean ID against mean OOD accuracy: star zero-shot, diamonds fine-tuned, WiSE-FT's curve."""
    chosen = [r for r in records if r["role"] in ("id", "ood") and r.get("selected", True)]
    sets = _sets(records)
    rows = [
        (row, points)
        for row in in_order(row_of(r) for r in chosen)
        if len(points := _pairs(chosen, row, sets))
    ]
    if not rows:
        return None
    mixed = [("wise-ft", base) for base in _bases(records, "wise-ft")]
    curves = [
        (row, curve)
        for row in [*mixed, *_with_strengths(records)]
        if len(curve := _curve(records, row, sets)) > 1
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
    sets = _sets(records)
    own = [method for method, _ in _with_strengths(records)]
    bases = dict.fromkeys([None, *_bases(records, "wise-ft"), *_bases(records, "ose"), *own])
    found = []
    for base in bases:
        rows: list[Row] = [("wise-ft", base), ("ose", base), (base or "ft", None)]
        curves = {row: c for row in rows if len(c := _curve(records, row, sets)) > 1}
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
                at = _chosen_alpha(selected, row)
                point = _pairs(selected, row, sets)
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
            vrf = _pairs(selected, ("vrf", base), sets)
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
    bases = list(dict.fromkeys(r.get("base") or "ft" for r in lines))
    panels = [(base, rows) for base in bases if (rows := _pooled(lines, base))]
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


def geometry_kept(records: Records) -> Any | None:
    """RSA by method, Euclidean and cosine: bars from 0, the value at the end."""
    lines = [r for r in records if r["role"] == "geometry" and r.get("selected", True)]
    rows = []
    for row in in_order(row_of(r) for r in lines):
        euclidean = [x for v in by_seed(lines, row).values() if (x := rsa_of(v)) is not None]
        cosine = _cosine_by_seed(r for r in lines if row_of(r) == row)
        if euclidean:
            rows.append((row, euclidean, cosine))
    if not rows:
        return None
    figure, axes = subplots(1, 1, (7.2, 0.9 + 0.46 * len(rows)))
    ax = axes[0][0]
    place = np.arange(len(rows))[::-1]
    for y, (row, euclidean, cosine) in zip(place, rows, strict=True):
        color = colour(row)
        for values, shift, alpha in ((euclidean, 0.19, 0.9), (cosine, -0.19, 0.4)):
            if not values:
                continue
            mean = statistics.fmean(values)
            std = statistics.stdev(values) if len(values) > 1 else 0.0
            ax.barh(y + shift, mean, height=0.34, color=color, alpha=alpha, lw=0)
            if std:
                ax.errorbar(mean, y + shift, xerr=std, color="#333333", lw=0.9, capsize=2)
            ax.text(
                max(mean, 0) + std + 0.01,
                y + shift,
                f"{mean:.3f}",
                va="center",
                fontsize=8,
                color="#333333",
            )
    ax.set_yticks(place, [short(display(row)) for row, _, _ in rows])
    ax.tick_params(axis="y", length=0)
    ax.grid(visible=False)
    ax.set_xlim(min(0.0, *(min(e) for _, e, _ in rows)), 1.12)
    ax.set_xticks(np.linspace(0, 1, 6))
    ax.set_xlabel("RSA with the pre-trained features (dark: Euclidean, light: cosine)")
    ax.set_title("Geometry kept")
    return figure


def _cosine_by_seed(lines: Iterable[Mapping[str, Any]]) -> list[float]:
    """Cosine RSA of one row, the mean over its data sets seed by seed."""
    found: dict[int, list[float]] = {}
    for line in lines:
        if line["RSA:cosine"] is not None:
            found.setdefault(line["seed"], []).append(line["RSA:cosine"])
    return [statistics.fmean(values) for values in found.values()]


FIGURES: dict[str, tuple[str, Callable[[Records], Any | None]]] = {
    "id-ood": (
        "In- against out-of-distribution accuracy. The star is the zero-shot model, diamonds are "
        "fine-tuned models, other markers are ensembles; the line is WiSE-FT from the zero-shot to "
        "the fine-tuned weights, or R-Adapter at every strength. Bars show one standard deviation "
        "over seeds.",
        id_against_ood,
    ),
    "alpha": (
        "Ensembles over α, and R-Adapter over its strength α, with the sample-wise VRF beside "
        "them. Open markers are the α chosen on "
        "in-distribution validation data; bands show one standard deviation over seeds.",
        alpha_sweep,
    ),
    "ratio": (
        "Accuracy of the fine-tuned over that of the zero-shot model, against the distance to the "
        "zero-shot failures; below, samples per bin and seed.",
        accuracy_ratio,
    ),
    "geometry": (
        "Correlation between the pairwise distances of the pre-trained and the fine-tuned image "
        "features.",
        geometry_kept,
    ),
    "forgetting": (
        "Zero-shot accuracy on classes that were not trained, the mean over the sets; the line is "
        "the zero-shot model, before fine-tuning.",
        bars.forgotten,
    ),
    "calibration": (
        "Expected calibration error (15 bins) of the predicted probabilities: small is good.",
        bars.calibration,
    ),
}
"""File name, caption and function of every figure of the report."""


def _sets(records: Records) -> dict[str, list[str]]:
    return {
        role: list(dict.fromkeys(r["dataset"] for r in records if r["role"] == role))
        for role in ("id", "ood")
    }


def _pairs(records: Records, row: Row, sets: Mapping[str, Sequence[str]]) -> np.ndarray:
    """[seeds, 2]: mean ID and mean OOD accuracy in percent, of seeds that have all sets."""
    pairs = []
    for values in by_seed(list(records), row).values():
        inside, outside = _id_mean(values, sets["id"]), ood_mean(values, sets["ood"])
        if inside is not None and outside is not None:
            pairs.append((100 * inside, 100 * outside))
    return np.array(pairs, dtype=float).reshape(-1, 2)


def _id_mean(values: Values, names: Sequence[str]) -> float | None:
    found = [values.get(("id", name)) for name in names]
    present = [v for v in found if v is not None]
    return statistics.fmean(present) if present and len(present) == len(found) else None


def _bases(records: Records, method: str) -> list[str | None]:
    return list(dict.fromkeys(row_of(r)[1] for r in records if r.get("method") == method))


def _with_strengths(records: Records) -> list[Row]:
    """Rows of single models that were measured at strengths α of their own."""
    return in_order(
        row_of(r)
        for r in records
        if r["role"] != "ratio" and r.get("alpha") is not None and group(row_of(r)) != "ensembles"
    )


def _curve(
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
        points = _pairs([r for r in mine if round(r["alpha"], 6) == alpha], row, sets)
        if len(points):
            curve.append((alpha, points))
    return curve


def _chosen_alpha(selected: Records, row: Row) -> float | None:
    alphas = {
        r["seed"]: r["alpha"]
        for r in selected
        if r["role"] == "id" and row_of(r) == row and r.get("alpha") is not None
    }
    return statistics.fmean(alphas.values()) if alphas else None


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


def _pooled(lines: Records, base: str, bins: int = 8) -> list[tuple[float, float, float, float]]:
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
