"""Checks of configuration fields: each names the field, what came and what was expected."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from robustft.errors import InputError, InputTypeError

T = TypeVar("T")

#: Metadata of a field of a method's options that names a file: a run's record keeps it absolute.
FILE = MappingProxyType({"file": True})


def plain(config: Any) -> None:
    """Turn NumPy's numbers and 0-d tensors in a dataclass into Python's, which JSON can hold."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if getattr(value, "shape", None) == ():
            object.__setattr__(config, field.name, value.item())


def names_file(config: type[Any], name: str) -> bool:
    """Whether the field `name` of a dataclass is one of FILE; False for no field."""
    return any(f.name == name and "file" in f.metadata for f in dataclasses.fields(config))


def integer(name: str, value: Any, *, least: int = 0) -> None:
    """`value` is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputTypeError(f"{name}: got {value!r}, expected an integer")
    if value < least:
        raise InputError(f"{name}: got {value}, expected at least {least}")


def real(
    name: str,
    value: Any,
    *,
    least: float = -math.inf,
    most: float = math.inf,
    above: float | None = None,
    below: float | None = None,
) -> None:
    """`value` is a finite number in [least, most], and > above, < below where these are given."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputTypeError(f"{name}: got {value!r}, expected a number")
    bounds = [f"at least {least:g}"] if least > -math.inf else []
    bounds += [f"above {above:g}"] if above is not None else []
    bounds += [f"at most {most:g}"] if most < math.inf else []
    bounds += [f"below {below:g}"] if below is not None else []
    inside = (
        math.isfinite(value)
        and least <= value <= most
        and (above is None or value > above)
        and (below is None or value < below)
    )
    if not inside:
        raise InputError(f"{name}: got {value!r}, expected a finite number{_list(bounds)}")


def flag(name: str, value: Any) -> None:
    """`value` is True or False."""
    if not isinstance(value, bool):
        raise InputTypeError(f"{name}: got {value!r}, expected true or false")


def choice(name: str, value: Any, options: Iterable[str]) -> None:
    """`value` is one of `options`."""
    known = tuple(options)
    if value not in known:
        raise InputError(f"{name}: got {value!r}, expected one of {', '.join(known)}")


def build(cls: type[T], values: Mapping[str, Any], *, what: str) -> T:
    """Make the dataclass `cls` of `values`; an unknown key is an error that names the nearest."""
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    unknown = [key for key in values if key not in known]
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        listed = ", ".join(known) or "none"
        raise InputError(
            f"{what} has no setting {', '.join(map(repr, unknown))}{hint} (it has: {listed})"
        )
    return cls(**values)


def _list(bounds: list[str]) -> str:
    return ", " + " and ".join(bounds) if bounds else ""
