"""Which methods there are: the package's own, and those that others bring.

A distribution brings one by an entry point of the group `robustft.methods`; any module can by
`METHODS.register`, and the command line imports one that --method-module names.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from robustft.errors import InputError, InputTypeError, warn
from robustft.train.method import GROUPS, Method
from robustft.train.published import Published

ENTRY_POINTS = "robustft.methods"
_FACTS = ("name", "display", "colour", "published", "head_from_text")


class Methods(Mapping[str, type[Method]]):
    """Names and classes of the methods, in the order in which they became known.

    Entry points are looked at when the methods are first listed or looked up, not before: then a
    module that brings a method can itself import robustft.methods.
    """

    def __init__(self, own: Iterable[type[Method]]) -> None:
        self._known = {method.name: method for method in own}
        self._looked = False

    def register(self, method: type[Method]) -> type[Method]:
        """Make a method known by its name; also a decorator of its class.

        Errors: InputTypeError for what is no class of a method; InputError where it does not state
        its facts (robustft.train.method.Method) or another method has its name.
        """
        check_facts(method)
        # Entry points wait: the one that is loaded may be of the module that calls this.
        taken = self._known.get(method.name)
        if taken is not None and (taken.__module__, taken.__qualname__) != (
            method.__module__,
            method.__qualname__,
        ):
            raise InputError(
                f"method: got {method.name!r} from {method.__module__}, expected a name that "
                f"{taken.__module__} has not taken"
            )
        self._known[method.name] = method
        return method

    def __getitem__(self, name: str) -> type[Method]:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._all()))

    def __len__(self) -> int:
        return len(self._all())

    def _all(self) -> dict[str, type[Method]]:
        if not self._looked:
            self._looked = True
            for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
                # One broken distribution must not take the other methods with it.
                try:
                    self.register(entry.load())
                except Exception as error:
                    warn(f"entry point {entry.name} = {entry.value} of {ENTRY_POINTS}: {error}")
        return self._known


def check_facts(method: Any) -> None:
    """Errors: as for `Methods.register`."""
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise InputTypeError(f"method: got {method!r}, expected a subclass of {Method.__name__}")
    where = f"{method.__module__}.{method.__qualname__}"
    for fact in _FACTS:
        if not hasattr(method, fact):
            raise InputError(f"{where}: got no {fact!r}, expected {', '.join(_FACTS)}")
    missing: frozenset[str] = getattr(method, "__abstractmethods__", frozenset())
    if missing:
        raise InputError(f"{where}: got no {', '.join(sorted(missing))}(), expected a whole method")
    for fact, right, expected in (
        ("name", re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", str(method.name)), "words like a-name"),
        ("colour", re.fullmatch("#[0-9a-f]{6}", str(method.colour)), "#rrggbb"),
        ("group", method.group in GROUPS, f"one of {', '.join(GROUPS)}"),
        ("published", isinstance(method.published, Published), "a Published"),
        ("head_from_text", isinstance(method.head_from_text, bool), "True or False"),
    ):
        if not right:
            raise InputError(f"{where}: got {fact} {getattr(method, fact)!r}, expected {expected}")
