"""Ops on arrays of other libraries (CuPy, NumPy, JAX), taken and given by DLPack, uncopied."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

from robustft.errors import InputTypeError

P = ParamSpec("P")
R = TypeVar("R")


def answers_in_kind(op: Callable[P, R]) -> Callable[P, R]:
    """The op, for arrays too: it answers with arrays of the library that its first argument is of.

    Such a library has DLPack and the array API's `__array_namespace__` (NumPy from 2.0, CuPy from
    13). Results carry no gradient. On a GPU the libraries' streams wait for each other, as DLPack
    prescribes.
    """

    @functools.wraps(op)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        first: Any = args[0] if args else next(iter(kwargs.values()), None)
        if isinstance(first, Tensor) or not is_array(first):
            return op(*args, **kwargs)
        given = inspect.signature(op).bind(*args, **kwargs).arguments
        tensors = {name: tensor(name, value) for name, value in given.items()}
        result: Any = cast(Any, op)(**tensors)
        back = first.__array_namespace__().from_dlpack
        if isinstance(result, tuple):
            return tuple(back(part.detach()) for part in result)  # type: ignore[return-value]
        answer: R = back(result.detach())
        return answer

    return wrapper


def is_array(value: object) -> bool:
    """Whether it is an array of another library that DLPack takes over."""
    return hasattr(value, "__dlpack__") and hasattr(value, "__array_namespace__")


def tensor(name: str, value: Any) -> Any:
    """An array as a tensor on the same memory; all else as it is."""
    if isinstance(value, Tensor) or not is_array(value):
        return value
    try:
        try:
            return torch.from_dlpack(value)
        except (BufferError, RuntimeError):  # negative strides, for one
            return torch.from_dlpack(value.__array_namespace__().asarray(value, copy=True))
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise InputTypeError(
            f"{name}: got an array of dtype {value.dtype} that torch cannot take ({error})"
        ) from None
