"""The section of bars: what is kept of other tasks and of the geometry, and calibration."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from robustft.evaluate.results import headline
from robustft.report.names import Row, colour, display, in_order
from robustft.report.page.chart import Bar, Bars
from robustft.report.page.section import Records, Report, Section
from robustft.report.page.sizes import counted
from robustft.report.series import calibration_error, geometry_by_row, means_by_row
from robustft.report.text import short


def section(report: Report) -> Section | None:
    found = (_forgotten(report.records), _geometry(report.records), _calibration(report.records))
    charts = [chart for chart in found if chart is not None]
    if not charts:
        return None
    return Section("kept", "Kept and calibrated", "bars.html", {"charts": charts})


def _forgotten(records: Records) -> Bars | None:
    found = means_by_row(records, ("forgetting",), headline)
    rows = [_row(row, [_percent(values.values())]) for row, values in found.items() if values]
    if not rows:
        return None
    before = found.get(("zero-shot", None))
    return Bars(
        "forgetting",
        "Other tasks",
        "zero-shot accuracy, %",
        rows,
        "Zero-shot accuracy on classes that were not trained; the line is the zero-shot model. "
        f"{counted(records, ('forgetting',))}.",
        level=100 * statistics.fmean(before.values()) if before else None,
    )


def _geometry(records: Records) -> Bars | None:
    rows = [
        _row(row, [_plain(values) for values in measured if values])
        for row, *measured in geometry_by_row(records)
    ]
    if not rows:
        return None
    return Bars(
        "geometry",
        "Geometry",
        "RSA (strong: Euclidean, pale: cosine)",
        rows,
        "Correlation of the distances between images before and after fine-tuning. "
        f"{counted(records, ('geometry',))}.",
    )


def _calibration(records: Records) -> Bars | None:
    both = [means_by_row(records, (role,), calibration_error) for role in ("id", "ood")]
    rows = []
    for row in in_order([*both[0], *both[1]]):
        # A bar that is missing would give the other one its look.
        values = [found.get(row, {}) for found in both if found]
        if all(values):
            rows.append(_row(row, [_percent(v.values()) for v in values]))
    if not rows:
        return None
    strong = "strong: ID, pale: OOD" if all(both) else "ID" if both[0] else "OOD"
    return Bars(
        "calibration",
        "Calibration",
        f"expected calibration error, % ({strong})",
        rows,
        f"15 bins of confidence; small is good. {counted(records, ('id', 'ood'))}.",
    )


def _row(row: Row, bars: Sequence[Bar]) -> tuple[str, str, Sequence[Bar]]:
    return short(display(row), 18), colour(row), bars


def _percent(values: Iterable[float]) -> Bar:
    return _bar([100 * value for value in values], 1)


def _plain(values: Sequence[float]) -> Bar:
    return _bar(list(values), 3)


def _bar(values: Sequence[float], digits: int) -> Bar:
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Bar(mean, 0.0, f"{mean:.{digits}f}")
    std = statistics.stdev(values)
    return Bar(mean, std, f"{mean:.{digits}f} ± {std:.{digits}f}")
