"""What every launcher does: check what the kernel cannot, and hand out addresses."""

from __future__ import annotations

import torch
from torch import Tensor

from robustft import _native
from robustft.backends.tensors import expect_matrices, unit_stride
from robustft.errors import InputError

CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # DType in csrc/cpu/kernels.hpp
_LARGE = 4 << 20  # bytes from which a buffer certainly holds a whole 2 MB page


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """torch.empty on the CPU, in large pages where the system has them: first writes fault less."""
    x = torch.empty(shape, dtype=dtype, device="cpu")
    if x.nbytes >= _LARGE:
        _native.advise(x.data_ptr(), x.nbytes)
    return x


def matrices(**tensors: Tensor) -> tuple[list[Tensor], int]:
    """The tensors with unit column stride (copied if they lack it), and the kernel's dtype code.

    They are named as errors shall name them. The kernels read raw memory, so shape, dtype and
    device must agree: InputError if they do not.
    """
    expect_matrices(**tensors)
    name, first = next(iter(tensors.items()))
    if not first.is_cpu:
        raise InputError(f"{name}: got a tensor on {first.device}, expected cpu")
    return unit_stride(*tensors.values()), CODES[first.dtype]


def vector(name: str, x: Tensor, length: int) -> Tensor:
    """A contiguous float32 CPU vector of the given length."""
    if x.shape != (length,) or not x.is_cpu:
        raise InputError(
            f"{name}: got shape {tuple(x.shape)} on {x.device}, expected [{length}] on cpu"
        )
    return x.to(torch.float32).contiguous()
