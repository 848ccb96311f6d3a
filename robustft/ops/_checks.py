"""Argument checks shared by the ops. Errors say which argument, what came, what was expected."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robustft.errors import InputError, InputTypeError

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def matrix(
    name: str,
    value: object,
    *,
    rows: str = "rows",
    columns: str = "D",
    like: Tensor | None = None,
) -> Tensor:
    """A non-empty floating [rows, columns] tensor, of the shape and device of `like` if given."""
    tensor = floating(name, value)
    if tensor.ndim != 2:
        raise InputError(f"{name}: got shape {tuple(tensor.shape)}, expected [{rows}, {columns}]")
    if tensor.shape[0] == 0 or tensor.shape[1] == 0:
        raise InputError(f"{name}: got an empty tensor of shape {tuple(tensor.shape)}")
    if like is not None:
        if tensor.shape != like.shape:
            raise InputError(
                f"{name}: got shape {tuple(tensor.shape)}, expected {tuple(like.shape)}"
            )
        same_device(name, tensor, like)
    return tensor


def floating(name: str, value: object) -> Tensor:
    """A tensor of a supported floating dtype."""
    if not isinstance(value, Tensor):
        raise InputTypeError(f"{name}: got {type(value).__name__}, expected a torch.Tensor")
    if value.dtype not in _FLOATS:
        raise InputTypeError(
            f"{name}: got dtype {value.dtype}, expected float32, bfloat16, float16 or float64"
        )
    return value


def same_device(name: str, tensor: Tensor, like: Tensor) -> None:
    if tensor.device != like.device:
        raise InputError(f"{name}: got device {tensor.device}, expected {like.device}")


def may_look(tensor: Tensor) -> bool:
    """Whether its values can be asked for: not if that waits for a device, or breaks a graph."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def finite(name: str, value: float) -> float:
    """A finite Python number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputTypeError(f"{name}: got {type(value).__name__}, expected a number")
    if not -math.inf < value < math.inf:  # unlike isfinite, torch.compile can trace it
        raise InputError(f"{name}: got {value}, expected a finite number")
    return float(value)


def positive(name: str, value: float) -> float:
    """A finite number above 0."""
    number = finite(name, value)
    if number <= 0:
        raise InputError(f"{name}: got {value}, expected a number above 0")
    return number


def unit_interval(name: str, value: float, *, closed: bool = True) -> float:
    """A number in [0, 1], or in [0, 1) when `closed` is False."""
    number = finite(name, value)
    if not 0.0 <= number <= 1.0 or (number == 1.0 and not closed):
        raise InputError(f"{name}: got {value}, expected a number in [0, 1{']' if closed else ')'}")
    return number


def common_dtype(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the dtype they promote to (autocast hands out mixed ones)."""
    dtype = tensors[0].dtype
    if all(tensor.dtype is dtype for tensor in tensors):  # Tensor.to takes a microsecond each
        return tensors
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return tuple(tensor.to(dtype) for tensor in tensors)
