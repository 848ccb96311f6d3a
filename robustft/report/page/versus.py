"""The section of paired tests: every method against plain fine-tuning, on the same images."""

from __future__ import annotations

from robustft.report.names import display
from robustft.report.page.section import Report, Section
from robustft.report.versus import against, reference_of

LEVEL = 0.05


def section(report: Report) -> Section | None:
    sets = report.outcomes.sets
    reference = reference_of(sets)
    found = [] if reference is None else against(sets, reference)
    if reference is None or not found:
        return None
    data = {
        "reference": display(reference),
        "display": display,
        "level": LEVEL,
        "found": found,
        "comparisons": sum(len(one.rows) for one in found),
        "several": any(line.seeds > 1 for one in found for line in one.rows),
    }
    return Section("paired", "Paired tests on the same images", "versus.html", data)
