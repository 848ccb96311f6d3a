"""What a reader is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Request:
    """One split of a registered set.

    spec: the name that was asked for; display: the set's name in tables; place: where the split
    was found, below root; options: the set's and the split's, for the reader; partial: images that
    a list names and that are missing are left out.
    """

    spec: str
    display: str
    split: str
    root: Path
    place: Path
    options: Mapping[str, Any]
    partial: bool = False
