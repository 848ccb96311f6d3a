"""Direct labels beside points, placed so that they cover neither points nor one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

# Directions tried around a point, in points of 1/72 inch: near ones first, then with a leader line.
_ANGLES = np.deg2rad([0, 180, 90, 270, 45, 315, 135, 225, 20, 340, 160, 200, 65, 295, 115, 245])
_RADII = (8.0, 13.0, 19.0, 27.0, 38.0, 52.0, 68.0)
_LEADER_FROM = 27.0


def label_points(
    axes: Any,
    points: Sequence[tuple[float, float]],
    texts: Sequence[str],
    colors: Sequence[str],
    *,
    avoid: Sequence[tuple[float, float]] = (),
    size: float = 9.0,
) -> None:
    """Write `texts` beside `points` (data coordinates), clear of all points and of `avoid`.

    Greedy: the most crowded point first, each at the nearest free place; a label that had to move
    away gets a thin line to its point. Call it after the limits are final.
    """
    figure = axes.figure
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    unit = figure.dpi / 72.0
    frame = axes.get_window_extent(renderer)
    spots = axes.transData.transform(np.asarray(points, dtype=float))
    others = axes.transData.transform(np.asarray(avoid, dtype=float)) if len(avoid) else None
    obstacles = spots if others is None else np.concatenate([spots, others])
    # Markers are some 9 points wide, lines thin.
    clear = np.repeat([4.5, 1.5], [len(spots), len(obstacles) - len(spots)])[:, None] * unit
    gaps = np.linalg.norm(spots[:, None] - spots[None], axis=2)
    crowd = (gaps < 60 * unit).sum(axis=1)
    taken: list[np.ndarray] = []
    lines: list[tuple[np.ndarray, np.ndarray]] = []
    for i in sorted(range(len(texts)), key=lambda j: (-crowd[j], j)):
        note = axes.annotate(
            texts[i],
            points[i],
            xytext=(0, 0),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=size,
            color=colors[i],
            zorder=6,
        )
        box = note.get_window_extent(renderer)
        half = np.array([box.width / 2 + 2 * unit, box.height / 2 + 1 * unit])
        best: tuple[float, float, np.ndarray] | None = None
        for radius in _RADII:
            for angle in _ANGLES:
                way = np.array([np.cos(angle), np.sin(angle)])
                offset = way * (radius * unit + np.abs(way) * half)
                center = spots[i] + offset
                cost = _cost(center, half, spots[i], obstacles, clear, taken, lines, frame, unit)
                if best is None or cost + 0.02 * radius < best[0]:
                    best = (cost + 0.02 * radius, radius, offset)
            if best is not None and best[0] < 0.02 * radius + 1e-9:
                break
        assert best is not None
        _, radius, offset = best
        note.set_position(tuple(offset / unit))
        center = spots[i] + offset
        taken.append(np.array([*(center - half), *(center + half)]))
        if radius >= _LEADER_FROM:
            edge = np.clip(spots[i], center - half, center + half)
            lines.append((spots[i], edge))
            inverse = axes.transData.inverted().transform
            axes.plot(
                *np.array([inverse(spots[i]), inverse(edge)]).T, color="0.6", lw=0.6, zorder=2
            )


def spread_out(
    wanted: Sequence[float], gap: float, low: float = -np.inf, high: float = np.inf
) -> list[float]:
    """Positions at least `gap` apart and within [low, high] if they fit, near `wanted`."""
    order = np.argsort(wanted, kind="stable")
    placed = np.clip(np.asarray(wanted, dtype=float)[order], low, high)
    for _ in range(200):
        moved = False
        for i in range(len(placed) - 1):
            lack = gap - (placed[i + 1] - placed[i])
            if lack > 1e-9 * max(gap, 1e-12):
                placed[i] -= lack / 2
                placed[i + 1] += lack / 2
                moved = True
        if len(placed) and np.isfinite(high) and placed[-1] > high:
            placed[-1] = high
            moved = True
        if len(placed) and np.isfinite(low) and placed[0] < low:
            placed[0] = low
            moved = True
        if not moved:
            break
    result = np.empty(len(placed))
    result[order] = placed
    return [float(x) for x in result]


def _cost(
    center: np.ndarray,
    half: np.ndarray,
    own: np.ndarray,
    obstacles: np.ndarray,
    clear: np.ndarray,
    taken: Sequence[np.ndarray],
    lines: Sequence[tuple[np.ndarray, np.ndarray]],
    frame: Any,
    unit: float,
) -> float:
    low, high = center - half, center + half
    cost = 0.0
    if low[0] < frame.x0 or high[0] > frame.x1 or low[1] < frame.y0 or high[1] > frame.y1:
        cost += 20.0
    inside = (np.abs(obstacles - center) < half + clear).all(axis=1)
    cost += 4.0 * float(inside.sum())
    for box in taken:
        overlap = np.minimum(high, box[2:]) - np.maximum(low, box[:2])
        if (overlap > 0).all():
            cost += 10.0 + float(overlap.prod() / (unit * unit)) * 0.05
        # The leader line must not run through another label.
        if _crosses(own, np.clip(own, low, high), box):
            cost += 6.0
    for start, end in lines:
        if _crosses(start, end, np.array([*low, *high])):
            cost += 6.0
    return cost


def _crosses(start: np.ndarray, end: np.ndarray, box: np.ndarray) -> bool:
    steps = np.linspace(start, end, 25)[1:-1]
    return bool(((steps > box[:2]) & (steps < box[2:])).all(axis=1).any())
