"""The report as one HTML file: no script, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

from robustft.report.names import display, group
from robustft.report.table import Cell, Table
from robustft.report.text import readable

_CSS = """
:root { color-scheme: light dark; --ink: #1d2129; --soft: #667085; --line: #dfe3ea;
  --page: #ffffff; --band: #f5f7fa; --best: #e3f1e9; --best-ink: #0b5d3f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #9aa4b5; --line: #343b48;
  --page: #14171c; --band: #1c2128; --best: #14382a; --best-ink: #8fe0b8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 74rem; padding: 2rem 1.25rem 4rem; background: var(--page);
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .5rem; }
p, figcaption { color: var(--soft); margin: .25rem 0; }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums;
  font-size: .9rem; }
th, td { padding: .45rem .7rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: var(--page); font-weight: 600; }
thead th { background: var(--band); font-weight: 600; vertical-align: bottom; }
tr.group th { background: var(--band); color: var(--soft); font-weight: 600; }
thead th:first-child { background: var(--band); }
tbody tr:last-child td { border-bottom: 0; }
td.best { background: var(--best); color: var(--best-ink); font-weight: 650; }
td small { color: var(--soft); font-size: .82em; }
th.ood-mean, td.ood-mean { border: solid var(--line); border-width: 0 1px 1px; }
figure { margin: 1.25rem 0 2rem; }
figure img { display: block; width: 100%; height: auto; max-width: 60rem; background: #ffffff;
  border: 1px solid var(--line); border-radius: 8px; padding: .5rem; }
figcaption { max-width: 60rem; margin-top: .5rem; font-size: .92rem; }
"""


def page(title: str, table: Table, figures: Sequence[tuple[str, str, bytes]]) -> str:
    """The HTML text. `figures`: (name, caption, SVG bytes), embedded as data URIs."""
    title = html.escape(readable(title))
    seeds = (
        f"{table.seeds} seeds, mean ± sample standard deviation" if table.seeds > 1 else "1 seed"
    )
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title>",
        f"<style>{_CSS}</style></head><body>",
        f"<h1>{title}</h1>",
        f"<p>{len(table.rows)} methods, {seeds}. Accuracies are top-1 in percent. "
        "Whatever was chosen was chosen on in-distribution validation data.</p>",
        "<h2>Results</h2>",
        _table(table),
    ]
    if figures:
        parts.append("<h2>Figures</h2>")
    for name, caption, svg in figures:
        data = base64.b64encode(svg).decode("ascii")
        parts.append(
            f'<figure id="{html.escape(name)}"><img alt="{html.escape(caption)}" '
            f'src="data:image/svg+xml;base64,{data}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )
    parts.append("</body></html>")
    return "\n".join(parts) + "\n"


def _table(table: Table) -> str:
    head = "".join(f'<th class="{role}">{html.escape(name)}</th>' for name, role in table.columns)
    lines = []
    for heading, rows in table.sections():
        if heading is not None:
            width = len(table.columns) + 1
            lines.append(f'<tr class="group"><th colspan="{width}">{heading}</th></tr>')
        for row, cells in rows:
            kind = "ensemble" if group(row) == "ensembles" else "model"
            body = "".join(
                _cell(cell, role) for cell, (_, role) in zip(cells, table.columns, strict=True)
            )
            lines.append(f'<tr class="{kind}"><td>{html.escape(display(row))}</td>{body}</tr>')
    return (
        f'<div class="wide"><table><thead><tr><th>Method</th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _cell(cell: Cell | None, role: str) -> str:
    if cell is None:
        return f'<td class="{role}">–</td>'
    mean, mark, std = cell.text.partition(" ± ")
    text = f"{mean}<small> ± {std}</small>" if mark else mean
    return (
        f'<td class="{role} best">{text}</td>' if cell.best else f'<td class="{role}">{text}</td>'
    )
