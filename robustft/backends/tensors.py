"""What the launchers of several backends do to tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from robustft.errors import InputError


def expect(
    name: str, x: Tensor, dtype: torch.dtype, shape: tuple[int, ...], device: str | None = None
) -> None:
    """InputError if a tensor is not what a kernel would read. device: its type, if it matters."""
    if x.dtype != dtype or x.shape != shape or device not in (None, x.device.type):
        place = "" if device is None else f" on {device}"
        raise InputError(
            f"{name}: got {x.dtype} of shape {tuple(x.shape)} on {x.device}, "
            f"expected {dtype} of shape {tuple(shape)}{place}"
        )


def sum_dtype(*tensors: Tensor) -> torch.dtype:
    """What an op accumulates in: float64 if one of its tensors has it, else float32."""
    double = any(x.dtype == torch.float64 for x in tensors)
    return torch.float64 if double else torch.float32


Layout = list[tuple[torch.dtype, tuple[int, ...]]]


def expect_packed(packed: list[Tensor], layout: Layout) -> None:
    """InputError if what was packed of a bank is not laid out as the backend lays it out."""
    if len(packed) != len(layout):
        raise InputError(f"packed: got {len(packed)} tensors, expected {len(layout)}")
    for i, (part, (dtype, shape)) in enumerate(zip(packed, layout, strict=True)):
        expect(f"packed[{i}]", part, dtype, shape)


def expect_search(
    queries: Tensor, rows: Tensor, packed: list[Tensor], k: int, layout: Layout
) -> None:
    """InputError for a search that would read what is not there. packed may be empty."""
    for name, x in (("queries", queries), ("rows", rows)):
        if x.ndim != 2 or x.shape[1] == 0 or x.shape[1] != rows.shape[1] or x.dtype != rows.dtype:
            raise InputError(
                f"{name}: got {x.dtype} of shape {tuple(x.shape)}, "
                "expected queries [Q, D] and rows [N, D] of one dtype"
            )
    if not 1 <= k <= len(rows):
        raise InputError(f"k: got {k}, expected 1 to {len(rows)}, the number of rows")
    if packed:
        expect_packed(packed, layout)


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
