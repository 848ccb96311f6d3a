"""Argument checks shared by the ops. Errors say which argument, what came, what was expected."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robustft import scalars
from robustft.errors import InputError, InputTypeError

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_LOOK = 1 << 24  # elements that are looked at together


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
    if tensor.numel() == 0:
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


def finite_rows(name: str, rows: Tensor) -> None:
    """Raise, and name the first of them, if rows of a matrix hold NaN or Inf."""
    bad: list[int] = []
    step = max(1, _LOOK // rows.shape[1])
    for first in range(0, rows.shape[0], step):
        found = ~rows[first : first + step].isfinite().all(1)
        if found.any():
            bad += (found.nonzero()[:, 0] + first).tolist()
    if bad:
        some = ", ".join(map(str, bad[:5])) + (", …" if len(bad) > 5 else "")
        raise InputError(f"{name}: got NaN or Inf in {len(bad)} rows ({some}), expected none")


def may_look(tensor: Tensor) -> bool:
    """Whether its values can be asked for: not if that waits for a device, or breaks a graph."""
    return tensor.is_cpu and not torch.compiler.is_compiling()


def integer(name: str, value: object) -> int:
    """A number that is whole by its type, as an int (scalars.whole)."""
    number = value if type(value) is int else scalars.whole(name, _constant(name, value))
    if not -(2**63) <= number < 2**63:
        raise InputError(f"{name}: got {number}, expected an integer of 64 bits")
    return number


def finite(name: str, value: object) -> float:
    """A finite number, as a float (scalars.real)."""
    if type(value) in (float, int):  # nearly always, and all that torch.compile has to trace
        number = float(value)  # type: ignore[arg-type]
    else:
        number = scalars.real(name, _constant(name, value))
    if not -math.inf < number < math.inf:  # unlike isfinite, torch.compile can trace it
        raise InputError(f"{name}: got {value}, expected a finite number")
    return number


def _constant(name: str, value: object) -> object:
    """The value, if no gradient is wanted that it would not get."""
    if isinstance(value, Tensor) and value.requires_grad:
        raise InputTypeError(f"{name}: got a tensor that requires grad, expected a constant")
    return value


def positive(name: str, value: object) -> float:
    """A finite number above 0."""
    number = finite(name, value)
    if number <= 0:
        raise InputError(f"{name}: got {value}, expected a number above 0")
    return number


def unit_interval(name: str, value: object, *, closed: bool = True) -> float:
    """A number in [0, 1], or in [0, 1) when `closed` is False."""
    number = finite(name, value)
    if not 0.0 <= number <= 1.0 or (number == 1.0 and not closed):
        raise InputError(f"{name}: got {value}, expected a number in [0, 1{']' if closed else ')'}")
    return number


def common_dtype(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the dtype they promote to (autocast hands out mixed ones)."""
    dtype = tensors[0].dtype
    for tensor in tensors:
        if tensor.dtype is not dtype:
            break
    else:  # Tensor.to takes a microsecond each
        return tensors
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return tuple(tensor.to(dtype) for tensor in tensors)
