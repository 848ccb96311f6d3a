"""One figure an op: time over shapes, relative to a unit, a diagram a mode and dtype."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import Row
from benchmarks.results import Panel, best, by_shape, panels
from robustft.atomic import replacing
from robustft.optional import require
from robustft.report.style import STYLE

# After Okabe and Ito's palette: ours in green and blue, peers in the others. A provider has its
# colour and marker in every figure.
_STYLES: tuple[tuple[str, str, str], ...] = (  # part of a name, colour, marker
    ("robustft cpu, kept", "#009e73", "o"),
    ("robustft cpu, recomputed", "#56b4e9", "o"),
    ("robustft cpu", "#009e73", "o"),
    ("robustft cuda", "#009e73", "o"),
    ("robustft triton", "#0072b2", "o"),
    ("robustft FeatureBank", "#56b4e9", "o"),
    ("robustft reference", "#5e3c99", "s"),
    ("torch eager", "#d55e00", "^"),
    ("torch.compile", "#b5508a", "v"),
    ("open_clip", "#d98c00", "D"),
    ("linear_cross_entropy", "#8c6d31", "P"),
    ("FAISS", "#a3123a", "X"),
    ("scikit-learn", "#d98c00", "D"),
    ("torch topk", "#d55e00", "^"),
    ("torch kthvalue", "#b5508a", "v"),
    ("robustft", "#009e73", "o"),
)
_OTHER = ("#444444", "h")
_STYLE: Any = STYLE | {"axes.titlesize": 10.5, "font.size": 9.5}
# What a time is divided by: the floor's unit of work, or the best peer.
_BY_PEER = ("nearest",)
_TABLE_ONLY = ("pack",)
_COLUMNS = 2


def write(rows: Sequence[Row], stem: Path) -> list[Path]:
    """Write <stem>.svg and <stem>.png; returns the paths (none if nothing was timed)."""
    figure = draw(rows)
    if figure is None:
        return []
    paths = []
    for kind, options in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": 144})):
        path = stem.with_name(f"{stem.name}.{kind}")
        with replacing(path) as temporary:
            figure.savefig(temporary, format=kind, bbox_inches="tight", **options)
        paths.append(path)
    return paths


def draw(rows: Sequence[Row]) -> Any | None:
    """The figure, or None if nothing was timed."""
    require("matplotlib", extra="bench")
    import matplotlib
    from matplotlib.figure import Figure

    timed = [row for row in rows if row.p50_ms is not None and row.mode not in _TABLE_ONLY]
    found = {panel: r for panel, r in panels(timed).items() if any(x.kind != "floor" for x in r)}
    if not found:
        return None
    columns = min(_COLUMNS, len(found))
    lines = math.ceil(len(found) / columns)
    head, (common, titles) = rows[0], _titles(list(found))
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.6 * columns, 3.5 * lines + 0.8), layout="constrained")
        axes = figure.subplots(lines, columns, squeeze=False).flatten()
        handles: dict[str, Any] = {}
        for ax, (panel, inside) in zip(axes, found.items(), strict=False):
            handles |= _panel(ax, inside)
            ax.set_title(titles[panel])
        for ax in axes[len(found) :]:
            ax.set_axis_off()
        figure.suptitle(
            f"{', '.join([head.op, *common])}: median time, {_unit(rows)}\n"
            f"{head.processor}, {head.isa}, {head.threads} threads",
            x=0.01,
            ha="left",
            fontsize=10.5,
        )
        order = sorted(handles, key=_rank)
        figure.legend(
            [handles[name] for name in order],
            order,
            loc="outside lower center",
            ncols=min(4, len(order)),
            frameon=False,
        )
    return figure


def _titles(found: list[Panel]) -> tuple[list[str], dict[Panel, str]]:
    """What all panels share, for the figure's title, and a title of the rest for each."""
    shared = [len(set(parts)) == 1 for parts in zip(*found, strict=True)]
    if all(shared):
        shared = [False] * len(shared)
    common = [part for part, same in zip(found[0], shared, strict=True) if same and part]
    rest = {
        panel: ", ".join(p for p, same in zip(panel, shared, strict=True) if p and not same)
        for panel in found
    }
    return [_words(part) for part in common], {k: _words(text) for k, text in rest.items()}


def _words(text: str) -> str:
    return text.replace("+", " and ")


def _panel(ax: Any, rows: Sequence[Row]) -> dict[str, Any]:
    """Draw one diagram; returns the line of each provider that the legend is to name."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    shapes = by_shape(rows)
    names = dict.fromkeys(row.provider for row in rows if row.kind != "floor")
    lines, values = {}, [1.0]
    for name in names:
        points = _points(name, shapes)
        if points and len(shapes) == 1:  # providers side by side, by name
            points = [(len(values) - 1.0, *point[1:]) for point in points]
        if points:
            lines[name] = _series(ax, name, points, list(shapes))
            values += [point[1] for point in points]
    ax.axhline(1, color="#222222", lw=1, zorder=2)
    ax.set_yscale("log")
    low, high = min(values), max(values)
    ax.set_ylim(low / 1.3, max(high * 1.3, 2.2))
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 300 else (1,)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    ax.yaxis.set_minor_locator(LogLocator(subs=()))
    ax.set_ylabel("× " + ("best peer" if rows[0].op in _BY_PEER else _floor(rows)))
    labels = [_label(shape) for shape in shapes]
    if len(shapes) == 1:
        ax.set_xlabel(labels[0])
        labels, lines = [re.sub("(?<=[ _])", "\n", name) for name in lines], {}
    ax.set_xlim(-0.4, len(labels) - 0.6)
    # About 70 characters of this size fit under a diagram.
    crowded = sum(max(map(len, label.split("\n"))) + 1 for label in labels) > 70
    turned = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
    labels = [label.replace("\n", " ") for label in labels] if crowded else labels
    ax.set_xticks(range(len(labels)), labels, **turned)
    ax.grid(axis="x", visible=False)
    return lines


def _points(
    name: str, shapes: dict[str, dict[str, Row]]
) -> list[tuple[float, float, float, float]]:
    """(position, relative median, 20th, 80th percentile) where the provider was timed."""
    found = []
    for x, case in enumerate(shapes.values()):
        row = case.get(name)
        unit = _unit_ms(row, case) if row else None
        if row and unit and row.p50_ms and row.p20_ms and row.p80_ms:
            found.append((float(x), row.p50_ms / unit, row.p20_ms / unit, row.p80_ms / unit))
    return found


def _series(
    ax: Any, name: str, points: list[tuple[float, float, float, float]], shapes: list[str]
) -> Any:
    """One provider: a line for each kind of shape ("512x512 labels" is not "512x512")."""
    color, marker = _look(name)
    ours = "robustft" in name and "reference" not in name
    for x, _, low, high in points:
        ax.vlines(x, low, high, color=color, lw=1, alpha=0.6, zorder=2)
    line = None
    for _, group in itertools.groupby(points, key=lambda p: _kind(shapes[int(p[0]) % len(shapes)])):
        (line,) = ax.plot(
            *zip(*((x, y) for x, y, _, _ in group), strict=True),
            color=color,
            marker=marker,
            ms=6.5,
            mec="white",
            mew=0.7,
            lw=2.2 if ours else 1.2,
            zorder=4 if ours else 3,
        )
    return line


def _unit_ms(row: Row, case: dict[str, Row]) -> float | None:
    """What the figure divides a time by."""
    if row.op in _BY_PEER:
        peer = best(list(case.values()), "peer")
        return peer.p50_ms if peer else None
    return row.p50_ms / row.times_unit if row.p50_ms and row.times_unit else None


def _unit(rows: Sequence[Row]) -> str:
    if rows[0].op in _BY_PEER:
        return "relative to the fastest peer (below the line: faster than all of them)"
    if rows[0].unit == "GB/s":
        return "relative to moving the least bytes at the measured read rate"
    if rows[0].op == "step":
        return "relative to both towers' passes on as many pairs (VRF: to its product)"
    if rows[0].op == "mpm_nce":
        return "in products of that shape (torch.mm, measured beside it)"
    return "relative to its products alone at torch.mm's rate"


def _floor(rows: Sequence[Row]) -> str:
    return "floor" if rows[0].unit == "GB/s" else f"one {rows[0].floor}"


def _label(shape: str) -> str:
    """512x1000 head → 512×1,000, and head on a second line; 4096x4096 → 4,096²."""
    size, _, kind = shape.partition(" ")
    if not re.fullmatch(r"[\dx]+", size):
        return shape
    numbers = [f"{int(n):,}" for n in size.split("x")]
    square = len(numbers) == 2 and numbers[0] == numbers[1]
    size = f"{numbers[0]}²" if square else "×".join(numbers)
    return f"{size}\n{kind}" if kind else size


def _kind(shape: str) -> str:
    """ "512x512 labels" → "labels"; "Q = 64" has none."""
    size, _, kind = shape.partition(" ")
    return kind if "x" in size else ""


def _rank(name: str) -> int:
    """A provider's place in _STYLES, and so in the legend."""
    return next((i for i, (part, _, _) in enumerate(_STYLES) if part in name), len(_STYLES))


def _look(name: str) -> tuple[str, str]:
    return (*(style[1:] for style in _STYLES), _OTHER)[_rank(name)]
