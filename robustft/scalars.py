"""Plain numbers out of whatever is one: Python's, NumPy's, tensors and arrays of no dimension."""

from __future__ import annotations

import numbers
from typing import Any

from robustft.errors import InputTypeError


def real(name: str, value: Any) -> float:
    """`value` as a float, NaN and Inf included.

    Errors: InputTypeError, naming the argument, for what is no real number; a bool is none.
    """
    value = _item(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InputTypeError(f"{name}: got {type(value).__name__}, expected a number")
    return float(value)


def whole(name: str, value: Any) -> int:
    """`value` as an int. Errors: InputTypeError for what is no integer; a float is none."""
    value = _item(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise InputTypeError(f"{name}: got {type(value).__name__}, expected an integer")
    return int(value)


def _item(value: Any) -> Any:
    """The scalar in a NumPy number, or in a tensor or array without dimensions."""
    return value.item() if getattr(value, "shape", None) == () else value
