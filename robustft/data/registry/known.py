"""Which data sets are known: the package's own, and those that users bring.

A YAML file in the form of robustft.data.registry.form is read by `register_file` (--data-module on
the command line); a distribution names such a file, a DataSet or a list of them by an entry point
of the group `robustft.data`; a Python module calls `REGISTRY.register`.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from robustft.data.registry.form import DataSet, read_sets
from robustft.errors import InputError, InputTypeError, warn

ENTRY_POINTS = "robustft.data"
_OWN = Path(__file__).parent / "sets"
_NAME = re.compile("[a-z0-9][a-z0-9.-]*")


class Registry(Mapping[str, DataSet]):
    """Registered sets by name, read when they are first looked at."""

    def __init__(self) -> None:
        self._sets: dict[str, DataSet] = {}
        self._looked = False

    def register(self, *sets: DataSet) -> None:
        """Make sets known by their names. Errors: InputError for a name that another set has."""
        for one in sets:
            if not isinstance(one, DataSet):
                raise InputTypeError(f"data set: got {type(one).__name__}, expected a DataSet")
            if not _NAME.fullmatch(one.name):
                raise InputError(f"data set: got the name {one.name!r}, expected one like a-name")
            if self._all().get(one.name, one) != one:
                raise InputError(f"data set: got {one.name!r}, which another set is called")
            self._sets[one.name] = one

    def register_file(self, path: str | Path) -> None:
        """Make the sets of a YAML file known. Errors: InputError as for `form.read_sets`."""
        self.register(*read_sets(Path(path)))

    def __getitem__(self, name: str) -> DataSet:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._all()))

    def __len__(self) -> int:
        return len(self._all())

    def _all(self) -> dict[str, DataSet]:
        if not self._looked:
            self._looked = True
            for path in sorted(_OWN.glob("*.yaml")):
                self.register_file(path)
            for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
                # One broken distribution must not take the other sets with it.
                try:
                    self._register_any(entry.load())
                except Exception as error:
                    warn(f"entry point {entry.name} = {entry.value} of {ENTRY_POINTS}: {error}")
        return self._sets

    def _register_any(self, found: DataSet | str | Path | Iterable[DataSet]) -> None:
        if isinstance(found, str | Path):
            self.register_file(found)
        else:
            self.register(*([found] if isinstance(found, DataSet) else found))


REGISTRY = Registry()
"""The one registry."""
