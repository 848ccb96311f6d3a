"""How figures look, and with which fonts they write names of any script."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

from robustft.errors import warn
from robustft.optional import require

STYLE: dict[str, Any] = {
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
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "font.size": 10,
    "figure.facecolor": "white",
    "svg.hashsalt": "robustft",  # the same records give the same file
    "pdf.fonttype": 42,  # TrueType, which conferences ask for
    "path.simplify": False,
    "text.parse_math": False,  # a name is text, dollars and all
}

_FONT = "DejaVu Sans"  # comes with matplotlib
# Asked in this order for what it lacks, where they are installed.
_OTHERS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
    "Microsoft YaHei",
    "Hiragino Sans GB",
    "Malgun Gothic",
    "Noto Sans",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Arial Unicode MS",
    "Noto Emoji",
    "Segoe UI Symbol",
)


@contextlib.contextmanager
def style(names: str = "") -> Iterator[None]:
    """The context in which figures are drawn and saved; selects no GUI backend.

    names: the letters that figures will show. Where no installed font has one of them, PNG files
    show a box for it, with a warning, and SVG files keep their text as text, which the fonts of
    whoever looks at them can draw.
    """
    matplotlib = require("matplotlib", extra="plot")
    from matplotlib import font_manager

    installed = set(font_manager.get_font_names())
    families = [_FONT, *(name for name in _OTHERS if name in installed)]
    # A list for each: a string would be read as a fontconfig pattern.
    paths = [
        font_manager.findfont(font_manager.FontProperties(family=[family])) for family in families
    ]
    charmaps = [font_manager.get_font(path).get_charmap() for path in paths]
    letters = {c for c in names if c.isprintable()}
    settings = {**STYLE, "font.family": families}
    if any(ord(c) not in charmaps[0] for c in letters):
        settings["pdf.fonttype"] = 3  # what else is installed may be no TrueType
    missing = sorted(c for c in letters if not any(ord(c) in known for known in charmaps))
    if missing:
        settings["svg.fonttype"] = "none"
        warn(
            f"no installed font has {''.join(missing[:10])}: PNG figures show boxes for it, SVG "
            "files and the HTML page show it where the viewer's fonts do"
        )
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def subplots(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Any, Any]:
    require("matplotlib", extra="plot")
    # Figure and the Agg canvas directly: pyplot would keep global state and may open a window.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sharex = options.pop("sharex", False)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=sharex, gridspec_kw=options or None)
    return figure, axes
