"""The backend of a call, resolved once, so that all parts of the call agree."""

from __future__ import annotations

import torch
from torch import Tensor

from robustft import backends

_LARGEST = 1 << 62


def resolve(op: str, first: Tensor, requested: str, dtype: torch.dtype | None = None) -> str:
    """`requested`, or what "auto" stands for here and now.

    first: the op's first tensor; dtype: what the op computes in, where that is another.

    A compiled graph keeps what it was traced with, for the largest sizes: sizes may be symbols
    there.
    """
    if requested != "auto":
        return requested
    device, dtype = first.device, dtype or first.dtype
    if torch.compiler.is_compiling():
        return _for_a_graph(op, device.type, device.index, dtype)
    return backends.choose(op, device.type, dtype, "auto", first.numel(), device.index)


def _for_a_graph(op: str, device: str, index: int | None, dtype: torch.dtype) -> str:
    return backends.choose(op, device, dtype, "auto", _LARGEST, index)


# As torch.compiler.assume_constant_result does, which imports torch._dynamo: a second of everyone's
# start.
_for_a_graph._dynamo_marked_constant = True  # type: ignore[attr-defined]
