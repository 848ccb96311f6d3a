"""The sections of the page, in its order."""

from __future__ import annotations

from collections.abc import Callable

from robustft.report.page import curves, details, images, kept, overview, paragraph, versus
from robustft.report.page.section import Report, Section

SECTIONS: tuple[Callable[[Report], Section | None], ...] = (
    overview.section,
    curves.section,
    kept.section,
    images.strips,
    images.near_and_far,
    images.differing,
    versus.section,
    details.every_set,
    details.other_measures,
    details.data_sets,
    details.seeds,
    details.choices,
    paragraph.section,
)
"""Each gives a section, or None where the records have nothing for it."""
