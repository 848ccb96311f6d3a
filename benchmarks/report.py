"""Rows as text: lines while measuring, and the tables of docs/performance.md.

The document's marked sections (`<!-- rows: NAME -->` … `<!-- end -->`) are rewritten from
results/PROCESSOR/NAME.csv, one processor after the other, so that no number is typed by hand.
"""

from __future__ import annotations

import re
import statistics
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import plot, results
from benchmarks.harness import Row
from benchmarks.results import best, by_shape, panels
from robustft import atomic

DOCUMENT = Path(__file__).parent.parent / "docs" / "performance.md"
_SECTION = re.compile(r"(<!-- rows: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def lines(rows: Sequence[Row]) -> list[str]:
    """A case as plain text, one line a provider."""
    head = rows[0]
    text = [" ".join(filter(None, (head.op, head.variant, head.mode, head.shape, head.dtype)))]
    text[0] += f"   (load {head.load_before:.1f}, others {_number(head.others_cores)} cores)"
    for row in rows:
        start = f"  {row.provider:28}"
        memory = "" if row.extra_mb is None else f"{row.extra_mb:9.1f} MB"
        error = "" if row.largest_error is None else f"  error {row.largest_error:.1e}"
        if row.p50_ms is None:
            text.append(f"{start}{memory}{error}  {row.skipped or 'not timed'}")
            continue
        text.append(
            f"{start}{row.p50_ms:10.3f} ms ({row.p20_ms:.3f}–{row.p80_ms:.3f}, {row.runs})"
            f"  {row.rate:8.1f} {row.unit}  {row.of_floor:6.2f} of {row.floor}"
            f"  × {row.times_unit:.2f}{memory}{error}"
        )
    return text


def write(folder: Path = results.FOLDER) -> list[Path]:
    """Plots of every result in the folder, and the document's tables; returns what was written."""
    written: list[Path] = []
    for path in sorted(folder.rglob("*.csv")):
        written += plot.write(results.read(path), path.with_suffix(""))
    if folder == results.FOLDER:
        text = DOCUMENT.read_text(encoding="utf-8")
        atomic.write_text(DOCUMENT, _SECTION.sub(lambda m: m[1] + _section(m[2]) + m[3], text))
        written.append(DOCUMENT)
    return written


def brief(rows: Sequence[Row]) -> list[str]:
    """A line a case: our best backend, of the floor, beside the best peer, memory and error."""
    found = []
    for panel, inside in panels(rows).items():
        for shape, case in by_shape(inside).items():
            ours = best([r for r in case.values() if "reference" not in r.provider], "robustft")
            peer = best(list(case.values()), "peer")
            head = " ".join(filter(None, (inside[0].op, *panel, shape)))
            if ours is None or ours.p50_ms is None:
                reasons = {r.skipped for r in case.values() if r.kind == "robustft" and r.skipped}
                found.append(f"{head}: no kernel timed ({'; '.join(sorted(reasons))})")
                continue
            ratio = "no peer"
            if peer is not None and peer.p50_ms:
                ratio = f"{peer.p50_ms / ours.p50_ms:.2f} × faster than {peer.provider}"
            error = "–" if ours.largest_error is None else f"{ours.largest_error:.0e}"
            found.append(
                f"{head}: {ours.provider} {ours.p50_ms:.3f} ms, {ours.of_floor} of {ours.floor}, "
                f"{ratio}, {_number(ours.extra_mb)} MB, error {error}"
            )
    return found


def _section(name: str) -> str:
    paths = results.recorded(name)
    if not paths:
        return f"Not measured yet (no `benchmarks/results/*/{name}.csv`).\n"
    return "\n".join(section(results.read(path), _stem(path)) for path in paths)


def _stem(path: Path) -> str:
    return path.relative_to(results.FOLDER).with_suffix("").as_posix()


def section(rows: Sequence[Row], name: str) -> str:
    """All of a result file as markdown: where it was measured, the plot, tables, what was skipped.

    name: of the file, below results.FOLDER, without its ending. Times first; spreads, memory and
    errors are folded away.
    """
    head = rows[0]
    parts = [
        _wrapped(
            f"**{head.processor}**; {head.isa}; {head.threads} threads; {head.versions}; commit "
            f"{head.commit or 'unknown'}; {_span([row.when for row in rows])}. {_foreign(rows)}"
        ),
        f"![{head.op}: time by shape and provider](../benchmarks/results/{name}.svg)",
    ]
    folded = []
    for panel, inside in panels(rows).items():
        title = ", ".join(filter(None, panel))
        times = _times(inside)
        if times:
            what = f"median ms, and in brackets × {inside[0].floor}"
            parts.append(f"**{title}**: {what}\n\n{times}")
        for what, cell in _FOLDED:
            grid = _grid(inside, cell)
            if grid:
                folded.append(f"**{title}**: {what}\n\n{grid}")
    if folded:
        parts.append(_details("Spread, memory and errors", "\n\n".join(folded)))
    skipped = _skipped(rows)
    if skipped:
        parts.append(
            _details("Not measured, and why", "\n".join(_wrapped(f"- {line}") for line in skipped))
        )
    return "\n\n".join(parts) + "\n"


def _wrapped(text: str) -> str:
    """Prose or an item of a list in lines of 100 characters, as the other pages have it."""
    indent = "  " if text.startswith("- ") else ""
    return textwrap.fill(
        text, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _details(title: str, inner: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{inner}\n\n</details>"


def _times(rows: Sequence[Row]) -> str:
    """Shapes by providers, the fastest bold; our best backend against the best peer and floor."""
    timed = [row for row in rows if row.p50_ms is not None]
    if not timed:
        return ""
    names = _providers(timed)
    lines = [["shape", *names, "best peer / robustft", "of floor"]]
    for shape, found in by_shape(timed).items():
        case = list(found.values())
        ours, peer = best(case, "robustft"), best(case, "peer")
        fastest = min((row.p50_ms for row in (ours, peer) if row and row.p50_ms), default=None)
        cells = [shape]
        for name in names:
            row = found.get(name)
            text = _time(row) if row else "–"
            bold = row and row.kind != "floor" and row.p50_ms == fastest
            cells.append(f"**{text}**" if bold else text)
        mine, theirs = (row.p50_ms if row else None for row in (ours, peer))
        cells.append(f"{theirs / mine:.2f}" if mine and theirs else "–")
        cells.append(_number(ours.of_floor if ours else None))
        lines.append(cells)
    return _markdown(lines)


def _grid(rows: Sequence[Row], cell: Callable[[Row], str]) -> str:
    """Shapes by providers, "" where no cell has a value."""
    names = _providers([row for row in rows if cell(row) != "–"])
    if not names:
        return ""
    lines = [["shape", *names]]
    for shape, found in by_shape(rows).items():
        lines.append([shape, *(cell(found[n]) if n in found else "–" for n in names)])
    return _markdown(lines)


def _providers(rows: Sequence[Row]) -> list[str]:
    """Names in the order of measurement: probes, peers, robustft."""
    order = sorted(rows, key=lambda row: ("floor", "peer", "robustft").index(row.kind))
    return list(dict.fromkeys(row.provider for row in order))


def _markdown(lines: list[list[str]]) -> str:
    rule = ["---", *("--:" for _ in lines[0][1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:]))


def _skipped(rows: Sequence[Row]) -> list[str]:
    """Provider: reason (where), a line a reason."""
    where: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.skipped:
            place = " ".join(filter(None, (row.variant, row.mode, row.shape, row.dtype)))
            where.setdefault((row.provider, row.skipped), []).append(place)
    total = len({(row.variant, row.mode, row.shape, row.dtype) for row in rows})
    return [
        f"{provider}: {reason} ({'everywhere' if len(places) == total else '; '.join(places)})"
        for (provider, reason), places in where.items()
    ]


def _foreign(rows: Sequence[Row]) -> str:
    others = [row.others_cores for row in rows if row.others_cores is not None]
    if not others:
        return "What other processes took is not known."
    middle, worst = statistics.median(others), max(others)
    return f"Other processes took {middle:.2f} cores (at most {worst:.2f} during a case)."


def _span(times: Sequence[str]) -> str:
    days = sorted({time.partition("T")[0] for time in times})
    return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"


def _time(row: Row) -> str:
    if row.kind == "floor":
        return _number(row.p50_ms)
    return f"{_number(row.p50_ms)} ({_number(row.times_unit)})"


def _number(value: float | None) -> str:
    """Three digits, thousands with a comma."""
    if value is None:
        return "–"
    if value >= 100:
        return f"{value:,.0f}"
    if 0 < value < 0.01:
        return f"{value:.1g}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _spread(row: Row) -> str:
    return (
        "–" if row.p50_ms is None else f"{_number(row.p20_ms)}–{_number(row.p80_ms)} ({row.runs})"
    )


def _power(value: float | None) -> str:
    return "–" if value is None else f"{value:.0e}"


_FOLDED: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("20th–80th percentile in ms (calls)", _spread),
    ("extra memory of a call, MB", lambda row: _number(row.extra_mb)),
    ("largest error relative to float64", lambda row: _power(row.largest_error)),
)


def main() -> None:
    """python -m benchmarks.report FOLDER: a line for each case of the results in and below it."""
    for path in sorted(Path(sys.argv[1]).rglob("*.csv")):
        print("\n".join(brief(results.read(path))))


if __name__ == "__main__":
    main()
