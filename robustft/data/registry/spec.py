"""A registered data set as it is named: `[partial:][base:|novel:]NAME[@ROOT]`."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from robustft.data.registry.known import REGISTRY

_FORM = re.compile(r"(partial:)?(?:(base|novel):)?([a-z0-9][a-z0-9.-]*)(?:@(.+))?", re.DOTALL)


@dataclass(frozen=True)
class Spec:
    """What a name says. root: the folder below which sets lie, or None; partial: a part of the
    published images is enough; half: of the classes, "base" (the first, rounded up) or "novel"."""

    name: str
    root: str | None = None
    partial: bool = False
    half: str | None = None

    def __str__(self) -> str:
        text = "partial:" * self.partial + (f"{self.half}:" if self.half else "") + self.name
        return text + (f"@{self.root}" if self.root is not None else "")

    @property
    def plain(self) -> str:
        """For file names: "imagenet", "base-caltech101"."""
        return (f"{self.half}-" if self.half else "") + self.name

    def at(self, root: str | Path) -> Spec:
        """This set below `root`, unless a root is named already."""
        return self if self.root is not None else replace(self, root=str(root))


def parse(text: str) -> Spec | None:
    """The registered set that `text` names, or None: then it is something else."""
    match = _FORM.fullmatch(text)
    if match is None or match[3] not in REGISTRY:
        return None
    return Spec(match[3], match[4], match[1] is not None, match[2])


def with_root(text: str) -> Spec | None:
    """As `parse`, for a name that says where the set lies; no file is read for any other."""
    return parse(text) if "@" in text else None
