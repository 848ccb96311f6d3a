"""What a part of the page is, and what it is made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from robustft.report.further import Further
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
