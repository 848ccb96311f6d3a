"""dive_loss in CUDA C++ (csrc/cuda/dive_*.cu): two launches forward, one backward.

A row is held in registers by a team of 1, 2, 4 or 8 warps: up to four chunks of 16 bytes a thread
for each input. Wider rows (over 4,096 float32 or 8,192 16-bit numbers) are read again by each pass.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from robustft.backends.cuda.launcher import launch
from robustft.backends.tensors import expect_floats, expect_matrices, unit_stride

_WARPS = 8  # of a block; kWarps
# Two blocks for each of an H200's 132 multiprocessors, as many as its registers hold at a time.
_BLOCKS = 264
_COLUMNS = 32  # of a block of the second launch

_TYPES = {torch.float32: "float", torch.bfloat16: "BFloat16", torch.float16: "Half"}


class _Plan(NamedTuple):
    """How rows of one dtype and width are held."""

    kind: str  # the kernels' template arguments
    team: int  # warps of a row
    row: int  # bytes of a row of float32 in shared memory, 0 where rows are not held

    @property
    def teams(self) -> int:
        return _WARPS // self.team

    def rows_each(self, rows: int) -> int:
        """Rows of a block, in whole rounds of its teams."""
        return self.teams * -(-rows // (self.teams * _BLOCKS))


def _plan(dtype: torch.dtype, dim: int) -> _Plan:
    chunk = 16 // dtype.itemsize
    for team in (1, 2, 4, _WARPS):
        chunks = -(-dim // (32 * team * chunk))
        if chunks <= 4:
            return _Plan(f"<{_TYPES[dtype]}, {chunks}>", team, 4 * chunks * 32 * team * chunk)
    return _Plan(f"<{_TYPES[dtype]}, 0>", _WARPS, 0)


def forward(
    image: Tensor,
    image_pretrained: Tensor,
    text: Tensor,
    text_pretrained: Tensor,
    mean: Tensor,
    momentum: float,
    normalize: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(AVL, PVL, new mean), float32."""
    inputs, aligned = _inputs(
        image=image, image_pretrained=image_pretrained, text=text, text_pretrained=text_pretrained
    )
    rows, dim = image.shape
    expect_floats("mean", mean, (dim,), image)
    mean = mean.float()
    plan = _plan(image.dtype, dim)
    rows_each = plan.rows_each(rows)
    blocks, merges = -(-rows // rows_each), -(-dim // _COLUMNS)
    # One allocation, doubles first: scalars, parts, the counter, centres, sums.
    work = image.new_empty(2 * blocks + merges + 1 + blocks * dim, dtype=torch.float64)
    scalars = work.data_ptr()
    parts = scalars + 16 * blocks
    counter = parts + 8 * merges
    centres = counter + 8
    sums = centres + 4 * blocks * dim
    avl, pvl, new_mean = (image.new_empty(n, dtype=torch.float32) for n in ((), (), dim))
    launch(
        "dive_forward", "dive::forward_rows" + plan.kind, (blocks,), 32 * _WARPS,
        (*inputs, aligned, centres, sums, scalars, counter, rows, dim, rows_each, plan.team,
         normalize),
        plan.row * (1 + plan.teams),
    )  # fmt: skip
    launch(
        "dive_merge", "dive::forward_merge", (merges,), 32 * _WARPS,
        (centres, sums, scalars, parts, counter, mean, mean.stride(0), avl, pvl, new_mean,
         rows, dim, rows_each, blocks, momentum, 1 - momentum),
    )  # fmt: skip
    return avl, pvl, new_mean


def backward(
    image: Tensor,
    image_pretrained: Tensor,
    text: Tensor,
    text_pretrained: Tensor,
    new_mean: Tensor,
    grad_avl: Tensor,
    grad_pvl: Tensor,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients to image and text, contiguous, in their dtype."""
    inputs, aligned = _inputs(
        image=image, image_pretrained=image_pretrained, text=text, text_pretrained=text_pretrained
    )
    rows, dim = image.shape
    expect_floats("new_mean", new_mean, (dim,), image)
    expect_floats("grad_avl", grad_avl, (), image)
    expect_floats("grad_pvl", grad_pvl, (), image)
    new_mean, grad_avl, grad_pvl = (x.float() for x in (new_mean, grad_avl, grad_pvl))
    grad_f, grad_g = image.new_empty((rows, dim)), text.new_empty((rows, dim))
    plan = _plan(image.dtype, dim)
    rows_each = plan.rows_each(rows)
    launch(
        "dive_backward", "dive::backward_rows" + plan.kind, (-(-rows // rows_each),), 32 * _WARPS,
        (*inputs, aligned, new_mean.contiguous(), grad_avl, grad_pvl, grad_f, grad_g, rows, dim,
         rows_each, plan.team, normalize),
        plan.row,
    )  # fmt: skip
    return grad_f, grad_g


def _inputs(**tensors: Tensor) -> tuple[tuple[Tensor | int, ...], bool]:
    """Tensors of unit column stride and their row strides; whether rows are whole, aligned chunks.

    The kernels read raw memory, so shape, dtype and device must agree: InputError if they do not.
    """
    expect_matrices(**tensors)
    first = next(iter(tensors.values()))
    dense = unit_stride(*tensors.values())
    size = first.element_size()
    aligned = first.shape[1] * size % 16 == 0 and all(
        x.data_ptr() % 16 == 0 and x.stride(0) * size % 16 == 0 for x in dense
    )
    return (*dense, *(x.stride(0) for x in dense)), aligned
