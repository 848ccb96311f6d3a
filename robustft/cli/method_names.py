"""The methods' names for --help, which imports none of the methods."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Collection, Iterator

from robustft.train.published import PUBLISHED


class MethodNames(Collection[str]):
    """The package's methods, and those of entry points by the names of these; once methods are
    imported, what they are called."""

    def __contains__(self, name: object) -> bool:
        from robustft.methods import METHODS

        return name in METHODS

    def __iter__(self) -> Iterator[str]:
        if "robustft.methods" in sys.modules:
            from robustft.methods import METHODS

            return iter(METHODS)
        found = importlib.metadata.entry_points(group="robustft.methods")
        return iter(dict.fromkeys((*PUBLISHED, *(entry.name for entry in found))))

    def __len__(self) -> int:
        return len(list(iter(self)))


METHOD_NAMES = MethodNames()
