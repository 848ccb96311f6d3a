"""`robustft report`: tables and plots from result lines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from robustft.cli.ending import command, end
from robustft.cli.options import setting
from robustft.cli.run_folder import RESULTS, WEIGHTS
from robustft.errors import InputError


@dataclass(frozen=True)
class ReportOptions:
    """Make the markdown table, the plots and one self-contained HTML page from result files."""

    results_db: list[str] = setting(
        [],
        "Result files (JSON lines), run folders that hold one, or a folder of run folders; may be "
        "repeated, and commas separate several. WiSE-FT's results.jsonl and CLIP_benchmark's JSON "
        "are read too.",
    )
    baseline: list[str] = setting(
        [],
        "As --results-db, of models of ordinary training on the same data sets: effective "
        "robustness is the OOD accuracy beyond what theirs lets expect.",
    )
    out: Path = setting(Path("report"), "Folder for report.html, the tables and the figures.")
    title: str = setting("Robust fine-tuning", "Title of the page.")


def report(options: ReportOptions) -> None:
    """Carry out `robustft report`."""
    from robustft.evaluate.foreign import read_any
    from robustft.report import table, write_report

    if not options.results_db:
        raise InputError("--results-db: got nothing, expected at least one results.jsonl")
    files = [path for name in options.results_db for path in _files(Path(name))]
    records = [record for path in files for record in read_any(path)]
    beyond = [x for name in options.baseline for path in _files(Path(name)) for x in read_any(path)]
    write_report(records, options.out, title=options.title, baseline=beyond or None)
    print(table(records))
    runs = [path.parent for path in files if (path.parent / WEIGHTS).is_file()]
    run = runs[0] if len(runs) == 1 else "RUN"
    step = command("export", "--run", run, "--out", "model.safetensors")
    end(options.out / "report.html", options.out / "table.md", next=[step])


def _files(path: Path) -> list[Path]:
    """The result file itself, that of a run folder, or those of a folder of runs."""
    if not path.is_dir():
        return [path]
    own = path / RESULTS
    found = [own] if own.is_file() else sorted(path.glob(f"*/{RESULTS}"))
    if not found:
        raise InputError(
            f"--results-db: got {path}, expected a {RESULTS} in it or in one of its folders "
            "(robustft eval --run writes one)"
        )
    return found
