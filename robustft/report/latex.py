"""Tables as LaTeX, with the rules of the booktabs package. Names are text: nothing in them runs."""

from __future__ import annotations

from robustft.report.names import display
from robustft.report.table import Cell, Table
from robustft.report.text import readable

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    # After the end of a line these would be its own arguments.
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    **{c: "\\" + c for c in "#$%&_{}"},
}


def escape(text: str) -> str:
    """Readable text that LaTeX sets as it is; letters beyond ASCII need an engine that has them."""
    text = "".join(_SPECIAL.get(c, c) for c in readable(text))
    return text.replace("--", "-{}-").replace("--", "-{}-")  # they would be one longer dash


def latex(table: Table) -> str:
    """A `tabular` of the table: the best value of a column bold, methods under their groups' names
    where it is long. Needs \\usepackage{booktabs}."""
    width = len(table.columns) + 1
    head = ["Method", *(escape(name) for name, _ in table.columns)]
    lines = [rf"\begin{{tabular}}{{l{'r' * (width - 1)}}}", r"\toprule", _line(head)]
    for heading, rows in table.sections():
        lines.append(r"\midrule")
        if heading is not None:
            lines.append(rf"\multicolumn{{{width}}}{{l}}{{\textit{{{escape(heading)}}}}} \\")
        lines += [_line([escape(display(row)), *map(_cell, cells)]) for row, cells in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return "--"
    text = cell.text.replace("-", r"$-$").replace("±", r"$\pm$")
    return rf"\textbf{{{text}}}" if cell.best else text


def _line(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"
