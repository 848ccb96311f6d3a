"""Charts as SVG: what is drawn, in the units of the picture. templates/chart.html writes it out.

Drawn here and not by a script, a chart is there without one, in print too, and takes the page's
colours; the page's script only says values and hides what is unticked. Widths are such that text
can be read at 340 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from robustft.optional import require

WIDTH, HEIGHT = 480.0, 330.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 56.0, 14.0, 10.0, 44.0
_LABELS = 132.0  # room for the names beside bars


def _star() -> str:
    corners = [(9 if i % 2 == 0 else 3.6, math.pi * i / 5) for i in range(10)]
    return "M" + "L".join(f"{r * math.sin(a):.1f} {-r * math.cos(a):.1f}" for r, a in corners) + "z"


# matplotlib's names of markers, as paths around the origin.
SHAPES = {
    "o": "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z",
    "s": "M-5-5H5V5H-5z",
    "D": "M0-6.5L6.5 0 0 6.5-6.5 0z",
    "^": "M0-6.5L6.5 5.5H-6.5z",
    "v": "M0 6.5L6.5-5.5H-6.5z",
    "P": "M-2.2-6.5H2.2V-2.2H6.5V2.2H2.2V6.5H-2.2V2.2H-6.5V-2.2H-2.2z",
    "X": "M-6-3L-3-6 0-3 3-6 6-3 3 0 6 3 3 6 0 3-3 6-6 3-3 0z",
    "*": _star(),
}


@dataclass(frozen=True)
class Point:
    """x, y in the units of the axes; said: what it is, in words; reach: standard deviations in x
    and y; kind: "shape", "small" or "open"."""

    x: float
    y: float
    said: str
    reach: tuple[float, float] = (0.0, 0.0)
    kind: str = "shape"


@dataclass(frozen=True)
class Series:
    """Points that are shown and hidden together; line: "line" or "dashed" where the small ones are
    joined."""

    name: str
    colour: str
    marker: str
    points: Sequence[Point]
    line: str = ""


@dataclass(frozen=True)
class Chart:
    """level: a height that a thin line marks."""

    id: str
    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    caption: str
    level: float | None = None

    @property
    def drawn(self) -> dict[str, Any]:
        """Ticks, lines and points in the picture's units."""
        points = [p for s in self.series for p in s.points]
        across = _Scale.over([(p.x, p.reach[0]) for p in points], _LEFT, WIDTH - _RIGHT)
        heights = [(p.y, p.reach[1]) for p in points]
        if self.level is not None:
            heights.append((self.level, 0.0))
        up = _Scale.over(heights, HEIGHT - _BOTTOM, _TOP)
        return {
            "x_ticks": across.ticks(),
            "y_ticks": up.ticks(),
            "level": None if self.level is None else up(self.level),
            "series": [
                {
                    "name": s.name,
                    "colour": s.colour,
                    "shape": SHAPES[s.marker],
                    "line": s.line,
                    "path": _path([(across(p.x), up(p.y)) for p in s.points if p.kind == "small"]),
                    "errors": [line for p in s.points for line in _errors(p, across, up)],
                    "points": [(across(p.x), up(p.y), p.kind, p.said) for p in s.points],
                }
                for s in self.series
            ],
        }


@dataclass(frozen=True)
class Bar:
    """mean, std: in the units of the axis; text: what stands at its end."""

    mean: float
    std: float
    text: str


@dataclass(frozen=True)
class Bars:
    """A bar or two a row, the second one pale. rows: name, colour, bars."""

    id: str
    title: str
    x_label: str
    rows: Sequence[tuple[str, str, Sequence[Bar]]]
    caption: str
    level: float | None = None

    @property
    def drawn(self) -> dict[str, Any]:
        bars = [bar for _, _, row in self.rows for bar in row]
        two = any(len(row) > 1 for _, _, row in self.rows)
        each = 36.0 if two else 24.0
        low = min(0.0, *(bar.mean for bar in bars), 0.0)
        high = max(bar.mean + bar.std for bar in bars)
        across = _Scale(low, max(high, 1e-9), _LABELS + 8, WIDTH - 108)
        rows = []
        for i, (name, colour, row) in enumerate(self.rows):
            middle = _TOP + each * (i + 0.5)
            thick = 13.0
            tops = [middle - thick / 2] if len(row) == 1 else [middle - thick - 1, middle + 1]
            shown = [
                {
                    "x": min(across(0.0), across(bar.mean)),
                    "y": top,
                    "width": abs(across(bar.mean) - across(0.0)),
                    "error": (across(bar.mean - bar.std), across(bar.mean + bar.std))
                    if bar.std
                    else None,
                    "end": across(max(bar.mean + bar.std, 0.0)) + 6,
                    "text": bar.text,
                }
                for bar, top in zip(row, tops, strict=True)
            ]
            rows.append({"name": name, "colour": colour, "middle": middle, "bars": shown})
        bottom = _TOP + each * len(self.rows)
        return {
            "rows": rows,
            "thick": 13.0,
            "bottom": bottom,
            "height": bottom + _BOTTOM,
            "ticks": across.ticks(),
            "zero": across(0.0),
            "level": None if self.level is None else across(self.level),
        }


@dataclass(frozen=True)
class _Scale:
    """From the values `low` to `high` to the picture's `first` to `last`."""

    low: float
    high: float
    first: float
    last: float

    @classmethod
    def over(cls, values: Sequence[tuple[float, float]], first: float, last: float) -> _Scale:
        """Room for values with what they reach to either side, and some more."""
        low = min(value - reach for value, reach in values)
        high = max(value + reach for value, reach in values)
        pad = 0.06 * (high - low) or 1.0
        return cls(low - pad, high + pad, first, last)

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.first + share * (self.last - self.first)

    def ticks(self) -> list[tuple[float, str]]:
        ticker = require("matplotlib.ticker", extra="plot")
        found = ticker.MaxNLocator(6, steps=[1, 2, 2.5, 5, 10], min_n_ticks=4).tick_values(
            self.low, self.high
        )
        slack = 1e-9 * (self.high - self.low)
        inside = [t for t in found if self.low - slack <= t <= self.high + slack]
        return [(self(t), f"{t:.6g}".replace("-", "−")) for t in inside]


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) if points else ""


def _errors(p: Point, across: _Scale, up: _Scale) -> list[str]:
    """Paths of the point's standard deviations."""
    (wide, high), x, y = p.reach, across(p.x), up(p.y)
    lines = []
    if wide:
        lines.append(f"M{across(p.x - wide):.1f} {y:.1f}H{across(p.x + wide):.1f}")
    if high:
        lines.append(f"M{x:.1f} {up(p.y - high):.1f}V{up(p.y + high):.1f}")
    return lines
