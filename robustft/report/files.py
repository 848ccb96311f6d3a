"""The report's tables as files: Markdown to read, LaTeX for a paper, rows for other programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from robustft.report.further import Further
from robustft.report.latex import latex
from robustft.report.table import Table
from robustft.report.tidy import clip_benchmark, clip_benchmark_csv, json_lines, tidy


def texts(
    records: Sequence[Mapping[str, Any]], table: Table, beside: Sequence[Further]
) -> dict[str, str]:
    """What each file holds, by its name."""
    evaluations = clip_benchmark(records)
    markdown = [f"## {one.title}\n\n{one.text}\n\n{one.table.markdown()}" for one in beside]
    tex = [latex(table), *(f"% {one.title}. {one.text}\n{latex(one.table)}" for one in beside)]
    return {
        "table.md": table.markdown(),
        **({"measures.md": "\n".join(markdown)} if markdown else {}),
        "table.tex": "% \\usepackage{booktabs}\n" + "\n".join(tex),
        "table.csv": tidy(records),
        "clip_benchmark.jsonl": json_lines(evaluations),
        "clip_benchmark.csv": clip_benchmark_csv(evaluations),
    }
