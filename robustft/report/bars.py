"""Figures with one line a method: what is kept of geometry and of other tasks, and how far
confidence is from accuracy."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from robustft.evaluate.results import headline
from robustft.report.names import Row, colour, display, in_order
from robustft.report.series import calibration_error, geometry_by_row, means_by_row
from robustft.report.style import subplots
from robustft.report.text import short

Records = Sequence[Mapping[str, Any]]


def geometry_kept(records: Records) -> Any | None:
    """RSA by method, Euclidean and cosine: bars from 0, the value at the end."""
    rows = geometry_by_row(records)
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


def forgotten(records: Records) -> Any | None:
    """Mean zero-shot accuracy on the forgetting sets by method, the zero-shot model's as a line."""
    found = means_by_row(records, ("forgetting",), headline)
    if not found:
        return None
    figure, ax, place = _axes(found)
    for y, (row, values) in zip(place, found.items(), strict=True):
        mean, std = _mean(list(values.values()))
        ax.barh(y, 100 * mean, height=0.6, color=colour(row), alpha=0.85, lw=0)
        if std:
            ax.errorbar(100 * mean, y, xerr=100 * std, color="#333333", lw=0.9, capsize=2)
        note = ax.text(100 * (mean + std) + 0.8, y, f"{100 * mean:.1f}", va="center", fontsize=8)
        note.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1.0})  # over the line
        if row == ("zero-shot", None):
            ax.axvline(100 * mean, color=colour(row), lw=1, ls=(0, (4, 3)), zorder=0)
    ax.set_xlim(0, 108)
    ax.set_xticks(range(0, 101, 20))
    sets = list(dict.fromkeys(r["dataset"] for r in records if r["role"] == "forgetting"))
    ax.set_xlabel(f"zero-shot accuracy on other classes, % ({short(', '.join(sets), 60)})")
    ax.set_title("What is kept of other tasks")
    return figure


def calibration(records: Records) -> Any | None:
    """Expected calibration error by method: filled in distribution, open the mean out of it."""
    inside = means_by_row(records, ("id",), calibration_error)
    outside = means_by_row(records, ("ood",), calibration_error)
    found = in_order([*inside, *outside])
    if not found:
        return None
    figure, ax, place = _axes(found)
    for y, row in zip(place, found, strict=True):
        ends = []
        for values, face in ((inside.get(row), colour(row)), (outside.get(row), "white")):
            if values:
                mean, std = _mean(list(values.values()))
                ax.errorbar(100 * mean, y, xerr=100 * std or None, color=colour(row), lw=0.9)
                ax.plot(100 * mean, y, "o", ms=7, mfc=face, mec=colour(row), mew=1.6, zorder=3)
                ends.append(100 * mean)
        ax.plot(ends, [y] * len(ends), "-", color=colour(row), lw=1, alpha=0.5, zorder=2)
    ax.set_xlim(left=0)
    ax.set_xlabel("expected calibration error, % (filled: ID; open: mean of the OOD sets)")
    ax.set_title("Calibration")
    return figure


def _mean(values: Sequence[float]) -> tuple[float, float]:
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _axes(rows: Collection[Row]) -> tuple[Any, Any, Any]:
    figure, axes = subplots(1, 1, (7.2, 1.0 + 0.34 * len(rows)))
    ax = axes[0][0]
    place = np.arange(len(rows))[::-1]
    ax.set_yticks(place, [short(display(row)) for row in rows])
    ax.set_ylim(-0.6, len(rows) - 0.4)
    ax.tick_params(axis="y", length=0)
    ax.grid(visible=False, axis="y")
    return figure, ax, place
