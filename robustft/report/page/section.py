"""What a part of the page is, and what it is made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from robustft.report.album import Album
from robustft.report.further import Further
from robustft.report.outcomes import Outcomes, Shared, read_outcomes
from robustft.report.sets import settle
from robustft.report.table import Table

Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Report:
    """What sections are made from.

    lines: the records as they were read, accuracies on validation data among them; records: those
    that measure something, one (role, data set) being one set (robustft.report.sets); table: the
    table of every data set; beside: the tables of other measures.
    """

    lines: Records
    records: Records
    table: Table
    beside: Sequence[Further] = ()

    @cached_property
    def outcomes(self) -> Outcomes:
        """What methods said about each image, as far as it was kept; of every corruption alone."""
        return read_outcomes(settle(self.lines, corruptions_apart=True))

    @cached_property
    def pictured(self) -> list[Shared]:
        """Of each set the samples of one seed, the lowest."""
        first: dict[tuple[str, str], Shared] = {}
        for shared in sorted(self.outcomes.sets, key=lambda one: one.seed):
            first.setdefault((shared.role, shared.dataset), shared)
        return [shared for shared in self.outcomes.sets if shared in first.values()]

    @cached_property
    def album(self) -> Album:
        """The pictures of all sections together."""
        return Album()


@dataclass(frozen=True)
class Section:
    """A part of the page.

    id: its anchor; template: a file in templates/, which sees the keys of `data`. folded: whether
    it is closed when the page opens.
    """

    id: str
    title: str
    template: str
    data: Mapping[str, Any]
    folded: bool = True
