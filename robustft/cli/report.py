"""`robustft report`: tables and plots from result lines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from robustft.cli.options import setting
from robustft.errors import InputError


@dataclass(frozen=True)
class ReportOptions:
    results_db: list[str] = setting(
        [],
        "Result files (JSON lines), run folders that hold one, or a folder of run folders; may be "
        "repeated, and commas separate several.",
    )
    out: Path = setting(Path("report"), "Folder for report.html, table.md and the figures.")
    title: str = setting("Robust fine-tuning", "Title of the page.")


def report(options: ReportOptions) -> None:
    """Make the markdown table, the plots and one self-contained HTML page from result files."""
    from robustft.evaluate.results import read_results
    from robustft.report import table, write_report

    if not options.results_db:
        raise InputError("--results-db: got nothing, expected at least one results.jsonl")
    records = []
    for name in options.results_db:
        for path in _files(Path(name)):
            records.extend(read_results(path))
    write_report(records, options.out, title=options.title)
    print(table(records))
    print(f"\nwritten: {options.out / 'report.html'}")


def _files(path: Path) -> list[Path]:
    """The result file itself, that of a run folder, or those of a folder of runs."""
    if not path.is_dir():
        return [path]
    own = path / "results.jsonl"
    found = [own] if own.is_file() else sorted(path.glob("*/results.jsonl"))
    if not found:
        raise InputError(
            f"--results-db: no results.jsonl in {path} nor in the folders there; evaluate a run "
            "first (robustft eval --run)"
        )
    return found
