"""Write the whole report: table, plots and the HTML page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from robustft import atomic
from robustft.errors import InputError
from robustft.report import plots
from robustft.report.files import texts
from robustft.report.further import further
from robustft.report.page import SECTIONS, Report, render
from robustft.report.sets import settle
from robustft.report.style import style
from robustft.report.table import make_table

# Without dates: the same records give the same files.
_FORMATS: dict[str, dict[str, Any]] = {
    "png": {"dpi": 150, "metadata": {"Software": None}},
    "svg": {"metadata": {"Date": None}},
    "pdf": {"metadata": {"CreationDate": None}},
}


def write_report(
    results: Iterable[Mapping[str, Any]] | str | Path,
    out_dir: str | Path,
    *,
    title: str = "Robust fine-tuning",
    baseline: Iterable[Mapping[str, Any]] | None = None,
) -> list[Path]:
    """Write the tables (robustft.report.files), every figure as .png, .svg and .pdf, and
    report.html into `out_dir`.

    Args: results: records (`robustft.evaluate.read_results`), or the path of a results file;
        baseline: records of models of ordinary training, for the effective robustness.

    Figures whose records are absent are left out. Existing files of these names are replaced, each
    only once its successor is complete.

    Returns: the files written. Errors: InputError for records without one accuracy or geometry
    line, or a baseline of fewer than two models, MissingExtraError without matplotlib or Jinja2,
    OSError.
    """
    from robustft.evaluate.results import check_result, read_results

    if isinstance(results, str | Path):
        records = read_results(results)
    else:
        records = [check_result(dict(r)) for r in results]
    lines, records = records, settle(records)
    table = make_table(records)
    if not table.rows:
        source = results if isinstance(results, str | Path) else "results"
        raise InputError(f"{source}: got no evaluation to report, expected at least one")
    folder = Path(out_dir)
    beside = further(records, baseline)
    written = []
    for name, text in texts(lines, table, beside).items():
        written.append(folder / name)
        atomic.write_text(written[-1], text)
    with style(_names(records)):
        for name, draw in plots.FIGURES.items():
            figure = draw(records)
            if figure is None:
                continue
            for suffix, options in _FORMATS.items():
                path = folder / f"{name}.{suffix}"
                with atomic.replacing(path) as temporary:
                    figure.savefig(temporary, format=suffix, **options)
                written.append(path)
    report = Report(lines, records, table, beside)
    found = (make(report) for make in SECTIONS)
    path = folder / "report.html"
    atomic.write_text(path, render(title, [section for section in found if section is not None]))
    return [*written, path]


def _names(records: Iterable[Mapping[str, Any]]) -> str:
    """All letters of the names that figures may show."""
    return "".join(
        {str(r.get(key) or "") for r in records for key in ("dataset", "method", "base")}
    )
