"""One figure an op: time over shapes, relative to a unit, a diagram a mode and dtype."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import Row
from benchmarks.report import best, by_shape, panels
from robustft.extras import require
from robustft.files import replacing

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
)
_OTHER = ("#444444", "h")
_STYLE: dict[str, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": "#222222",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "font.size": 9.5,
    "figure.facecolor": "white",
    "svg.hashsalt": "robustft",  # the same rows give the same file
    "svg.fonttype": "none",
}
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

    timed = [row for row in rows if row.p50_ms is not None]
    found = {
        panel: inside
        for panel, inside in panels(timed).items()
        if any(row.kind != "floor" for row in inside) and panel[1] not in _TABLE_ONLY
    }
    if not found:
        return None
    columns = min(_COLUMNS, len(found))
    lines = math.ceil(len(found) / columns)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.6 * columns, 3.5 * lines + 0.8), layout="constrained")
        axes = figure.subplots(lines, columns, squeeze=False)
        handles: dict[str, Any] = {}
        flat = list(itertools.chain.from_iterable(axes))
        for ax, (panel, inside) in zip(flat, found.items(), strict=False):
            handles |= _panel(ax, inside)
            ax.set_title(", ".join(filter(None, panel)).replace("+", " and "))
        for ax in flat[len(found) :]:
            ax.set_axis_off()
        head = rows[0]
        figure.suptitle(
            f"{head.op}: median time, {_unit(rows)}\n"
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


def _panel(ax: Any, rows: Sequence[Row]) -> dict[str, Any]:
    """Draw one diagram; returns the line of each provider, for the legend."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    shapes = by_shape(rows)
    lines: dict[str, Any] = {}
    values: list[float] = [1.0]
    for name in dict.fromkeys(row.provider for row in rows if row.kind != "floor"):
        points = [
            (x, _relative(found[name], list(found.values())))
            for x, found in enumerate(shapes.values())
            if name in found
        ]
        points = [(x, y) for x, y in points if y is not None]
        if not points:
            continue
        color, marker = _look(name)
        ours = "robustft" in name and "reference" not in name
        (lines[name],) = ax.plot(
            *zip(*points, strict=True),
            color=color,
            marker=marker,
            ms=6.5,
            mec="white",
            mew=0.7,
            lw=2.2 if ours else 1.2,
            zorder=4 if ours else 3,
        )
        values += [y for _, y in points]
    ax.axhline(1, color="#222222", lw=1, zorder=2)
    ax.set_yscale("log")
    low, high = min(values), max(values)
    ax.set_ylim(low / 1.3, max(high * 1.3, 2.2))
    subs = (1, 2, 5) if high / low < 300 else (1,)
    ax.yaxis.set_major_locator(LogLocator(subs=subs))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_xlim(-0.4, len(shapes) - 0.6)
    crowded = sum(map(len, shapes)) > 45
    ax.set_xticks(range(len(shapes)), [_label(shape) for shape in shapes],
                  rotation=30 if crowded else 0, ha="right" if crowded else "center",
                  rotation_mode="anchor")  # fmt: skip
    ax.tick_params(which="minor", length=0)
    ax.set_ylabel("× " + ("best peer" if rows[0].op in _BY_PEER else _floor(rows)))
    ax.grid(axis="x", visible=False)
    return lines


def _relative(row: Row, case: list[Row]) -> float | None:
    if row.op not in _BY_PEER:
        return row.times_unit
    peer = best(case, "peer")
    return row.p50_ms / peer.p50_ms if peer and peer.p50_ms and row.p50_ms else None


def _unit(rows: Sequence[Row]) -> str:
    if rows[0].op in _BY_PEER:
        return "relative to the fastest peer (below the line: faster than all of them)"
    if rows[0].unit == "GB/s":
        return "relative to moving the least bytes at the measured read rate"
    if rows[0].op == "mpm_nce":
        return "in products of that shape (torch.mm, measured beside it)"
    return "relative to its products alone at torch.mm's rate"


def _floor(rows: Sequence[Row]) -> str:
    return "floor" if rows[0].unit == "GB/s" else f"one {rows[0].floor}"


def _label(shape: str) -> str:
    """4096x512 head → 4,096×512, and head on a second line."""
    size, _, kind = shape.partition(" ")
    if not re.fullmatch(r"[\dx]+", size):
        return shape
    size = "×".join(f"{int(n):,}" for n in size.split("x"))
    return f"{size}\n{kind}" if kind else size


def _rank(name: str) -> int:
    """A provider's place in _STYLES, and so in the legend."""
    return next((i for i, (part, _, _) in enumerate(_STYLES) if part in name), len(_STYLES))


def _look(name: str) -> tuple[str, str]:
    return (*(style[1:] for style in _STYLES), _OTHER)[_rank(name)]
