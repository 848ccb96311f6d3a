"""What the launchers of several backends do to tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def unit_stride(*tensors: Tensor) -> list[Tensor]:
    """The matrices with neighbouring columns side by side, copied where they are not."""
    return [x if x.stride(1) == 1 else x.contiguous() for x in tensors]


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32, whatever their dtype."""
    if a.dtype == torch.float32:
        return a @ b
    if a.device.type == "cuda":
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b in float32, whatever the dtype of a and b."""
    if a.dtype == torch.float32:
        total.addmm_(a, b)
    elif a.device.type == "cuda":
        torch.addmm(total, a, b, torch.float32, out=total)
    else:
        total.addmm_(a.float(), b.float())
