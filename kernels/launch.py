"""Launches without Triton's dispatch.

`kernel[grid](…)` classifies every argument anew (type, divisible by 16, equal to 1) to find the
compiled kernel: some 10 µs of the host's time, more than a small loss takes on the device. Here an
op plans its launches once a shape: the plan's key settles all types and integers, so that a call
has only to check that its addresses are aligned as they were, and hands over to the compiled
kernel. Where they are not, and under Triton's interpreter, the launch is Triton's own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

_F = TypeVar("_F", bound=Callable[..., Any])
_PLANS = 512  # shapes of an op whose launches are kept
_FORGET: list[Callable[[], None]] = []
_address = Tensor.data_ptr  # looked up once
# a·b + c in one instruction: Triton 3.9 warns that later releases want to be asked for it.
_OPTIONS = {"enable_fp_fusion": True}


def planned(function: _F) -> _F:
    """Cache the plans that a function makes from a hashable key."""
    cached = functools.lru_cache(maxsize=_PLANS)(function)
    _FORGET.append(cached.cache_clear)
    return cached  # type: ignore[return-value]


def forget() -> None:
    """Drop all plans: the table of configurations has changed."""
    for clear in _FORGET:
        clear()


class Launch:
    """A kernel on its grid, with the integers and constants that a plan's key settles.

    The kernel's parameters are pointers, floats, integers and constants, in this order.
    """

    __slots__ = ("_constants", "_function", "_grid", "_numbers", "_rest", "_run")

    def __init__(
        self, function: Any, grid: tuple[int, ...], *numbers: int, **constants: Any
    ) -> None:
        self._function, self._numbers, self._constants = function, numbers, constants
        self._grid = (*grid, 1, 1)[:3]
        self._run: Any = None
        self._rest: tuple[Any, ...] = ()

    def __call__(self, *tensors: Tensor, floats: tuple[float, ...] = ()) -> None:
        addresses = 0
        for address in map(_address, tensors):
            addresses |= address
        aligned = addresses & 15 == 0
        if aligned and self._run is not None:
            self._run(*tensors, *floats, *self._rest)
            return
        compiled = self._function[self._grid](
            *tensors, *floats, *self._numbers, **self._constants, **_OPTIONS
        )
        if aligned and compiled is not None:  # None: the interpreter
            names = self._function.arg_names[len(tensors) + len(floats) + len(self._numbers) :]
            self._rest = (*self._numbers, *(self._constants[name] for name in names))
            self._run = compiled[self._grid]
