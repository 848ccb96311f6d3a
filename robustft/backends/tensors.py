"""What the launchers of several backends do to tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robustft.errors import InputError


def expect(
    name: str, x: Tensor, dtype: torch.dtype, shape: tuple[int, ...], *, on_cpu: bool = False
) -> None:
    """InputError if a tensor is not what a kernel would read."""
    if x.dtype is not dtype or x.shape != shape or (on_cpu and not x.is_cpu):
        place = " on cpu" if on_cpu else ""
        raise InputError(
            f"{name}: got {x.dtype} of shape {tuple(x.shape)} on {x.device}, "
            f"expected {dtype} of shape {tuple(shape)}{place}"
        )


def sum_dtype(*tensors: Tensor) -> torch.dtype:
    """What an op accumulates in: float64 if one of its tensors has it, else float32."""
    for x in tensors:  # a generator would cost as much again
        if x.dtype is torch.float64:
            return torch.float64
    return torch.float32


Layout = list[tuple[torch.dtype, tuple[int, ...]]]


def expect_packed(packed: list[Tensor], layout: Layout, *, on_cpu: bool = False) -> None:
    """InputError if what was packed of a bank is not laid out as the backend lays it out."""
    if len(packed) != len(layout):
        raise InputError(f"packed: got {len(packed)} tensors, expected {len(layout)}")
    for i, (part, (dtype, shape)) in enumerate(zip(packed, layout, strict=True)):
        expect(f"packed[{i}]", part, dtype, shape, on_cpu=on_cpu)


def expect_search(
    queries: Tensor,
    rows: Tensor,
    packed: list[Tensor],
    k: int,
    layout: Callable[[Tensor], Layout],
    *,
    on_cpu: bool = False,
) -> None:
    """InputError for a search that would read what is not there. packed may be empty.

    layout: what the backend packs of such rows; on_cpu: whether all must lie on the CPU, in
    float32.
    """
    shape, bank = queries.shape, rows.shape
    if len(shape) != 2 or len(bank) != 2 or not shape[1] == bank[1] > 0:
        raise InputError(
            f"queries: got shape {tuple(shape)} for rows of shape {tuple(bank)}, "
            "expected [Q, D] and [N, D]"
        )
    if on_cpu:
        expect("rows", rows, torch.float32, bank, on_cpu=True)
    expect("queries", queries, rows.dtype, shape, on_cpu=on_cpu)
    if not 1 <= k <= bank[0]:
        raise InputError(f"k: got {k}, expected 1 to {bank[0]}, the number of rows")
    if packed:
        expect_packed(packed, layout(rows), on_cpu=on_cpu)


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
