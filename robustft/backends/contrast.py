"""What the launchers of mpm_nce on a card share: what forward keeps, and ∂Z in parts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robustft.backends.tensors import expect

WORKSPACE = 128 << 20  # bytes of ∂Z at a time
SCRATCH = 256 << 20  # bytes of the sums of tiles at a time


def saved_shapes(
    rows: int, columns: int, symmetric: bool, keep_logits: int
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Shapes of what forward returns for backward; nothing of size B×C is kept."""
    return (3, rows), (3, columns if symmetric else 0), (2,)


def expect_saved(saved: tuple[Tensor, ...], rows: int, columns: int, symmetric: bool) -> None:
    """InputError if what forward kept is not what backward reads."""
    of_rows, of_columns, of_anchors = saved_shapes(rows, columns, symmetric, 0)
    expect("row_statistics", saved[0], torch.float32, of_rows)
    expect("column_statistics", saved[1], torch.float32, of_columns)
    expect("anchors", saved[2], torch.float32, of_anchors)


def fitting(each: int) -> int:
    """How many sums of so many bytes are kept at a time, at least one."""
    return max(1, SCRATCH // each)


def squares(
    rows: int, columns: int, block_m: int, block_n: int, itemsize: int
) -> tuple[list[slice], list[slice]]:
    """Rows and columns of ∂Z at a time: all of them if they fit into WORKSPACE, else as near to a
    square as can be, for then each product is rewritten least often."""
    room = WORKSPACE // itemsize
    side = math.isqrt(room)
    height = min(rows, max(side, room // columns) // block_m * block_m or block_m)
    width = min(columns, room // height // block_n * block_n or block_n)
    return tuple(
        [slice(first, min(first + step, whole)) for first in range(0, whole, step)]
        for whole, step in ((rows, height), (columns, width))
    )  # type: ignore[return-value]


def factor_of(rows: int, columns: int) -> float:
    """That ∂Z is multiplied by. p − w over the number of anchors is about 1/B: float16 wants it
    near 1, and below 65,504 where there is one anchor alone."""
    return float(min(1 << (max(rows, columns) - 1).bit_length(), 1 << 15))
