"""mpm_nce on a GPU (R-Adapter, arXiv 2408.05749): no B×C matrix, no labels' matrix, no atomics on
floats.

    Z_ij = s·( <x_i, y_j> + δ·[i, j no positive pair] ),   row_i = LSE_j Z_ij − Σ_j w_ij Z_ij
    loss = ½·( mean_i row_i + mean_j col_j ), or the first mean alone

exclude_self (NO_SELF): (i, i) is no pair. Its Z is lower than any, so that 2^(Z − shift) is 0 by
itself; only what counts candidates has to leave it out.

Forward, two launches. `forward_tiles`: a program multiplies BLOCK_M images with some tiles of
BLOCK_N texts; the scale, the margin and the comparison of labels happen in registers; each row and
each column of a tile leaves four numbers (shift, Σ 2^(Z − shift), Σ of the positives' Z − shift,
their count), with smoothing a fifth (Σ of all Z − shift). `forward_merge` adds them up in index
order; its last program, found by an integer counter, takes the means. Where the numbers of all
tiles exceed some 256 MB the rows are taken in slabs, and `forward_fold` adds one slab's up before
the next.

One exponential serves the row sums and the column sums of a tile, about the tile's largest Z, as
long as no sum is below 2^-87; else each row and column takes its own.

Backward. ∂Z/s is recomputed tile by tile (`grad_tiles`), p − w subtracted in float32 and scaled to
about 1 before the cast to the storage type, into a workspace of bounded size; two library products
with float32 accumulation make the gradients, and `grad_finish` scales and rounds them once. (A
fused product would need a float32 accumulator of BLOCK_M × D, which exceeds the register file from
D = 512 on.) ∂loss/∂s is summed in the tiles. Four launches where one workspace serves all pairs;
else they are taken in squares of 8,192 × 8,192 (16 bits), so that a product of all rows or columns
is rewritten as seldom as can be.

Precision. Products of 16-bit inputs are exact, sums float32. float32 inputs are multiplied as
float32 (IEEE), unless torch is set to allow TF32. The shape fixes every order: same bits each time.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from robustft.backends.contrast import expect_saved, factor_of, fitting, squares
from robustft.backends.contrast import saved_shapes as saved_shapes
from robustft.backends.options import MpmNceOptions, Positives
from robustft.backends.tensors import (
    add_product,
    expect,
    expect_contrast,
    product,
    unit_stride,
)
from robustft.kernels.configs import config
from robustft.kernels.launch import Launch, planned
from robustft.kernels.mpm_nce_merge import forward_fold, forward_merge
from robustft.kernels.mpm_nce_tiles import COUNTER, forward_tiles, grad_tiles

_GRID_Y = 65535  # programs on a grid's second axis
_ANCHORS = 32  # anchors of one program of the merge
_FINISH = 2048  # elements of one program of grad_finish: 16 a thread


@triton.jit
def grad_finish(
    x_product, y_product, grad_x, grad_y, parts, grad_scale, scale, grad, factor,
    x_size, y_size, parts_size, x_programs,
    SUM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradients in their dtype, from products of factor·∂loss/∂Z; with SUM, ∂loss/∂s too."""
    pid = tl.program_id(0)
    upstream = tl.load(grad).to(tl.float32)
    unscale = upstream * tl.load(scale).to(tl.float32) / factor
    lanes = tl.arange(0, BLOCK)
    if SUM:
        if pid == 0:  # first of all: it takes longest
            total = tl.zeros((BLOCK,), tl.float64)
            for start in range(0, parts_size, BLOCK):
                offsets = start + lanes
                total += tl.load(parts + offsets, mask=offsets < parts_size, other=0.0).to(
                    tl.float64
                )
            tl.store(grad_scale, (tl.sum(total, 0) * upstream).to(grad_scale.dtype.element_ty))
        pid -= 1
    if (pid >= 0) & (pid < x_programs):
        offsets = pid.to(tl.int64) * BLOCK + lanes
        value = tl.load(x_product + offsets, mask=offsets < x_size, other=0.0) * unscale
        tl.store(grad_x + offsets, value.to(grad_x.dtype.element_ty), mask=offsets < x_size)
    elif pid >= x_programs:
        offsets = (pid - x_programs).to(tl.int64) * BLOCK + lanes
        value = tl.load(y_product + offsets, mask=offsets < y_size, other=0.0) * unscale
        tl.store(grad_y + offsets, value.to(grad_y.dtype.element_ty), mask=offsets < y_size)


class _Pairs(NamedTuple):
    """Where positives come from; what a kind does not use points at something harmless."""

    kind: int  # PAIRS of the kernels
    row_labels: Tensor
    column_labels: Tensor
    mask: Tensor
    mask_stride: int


def _pairs(x: Tensor, positives: Positives) -> _Pairs:
    rows, columns, mask, _ = positives
    if mask is not None:
        mask = unit_stride(mask)[0].view(torch.uint8)
        return _Pairs(2, mask, mask, mask, mask.stride(0))
    if rows is not None and columns is not None:
        return _Pairs(1, rows.contiguous(), columns.contiguous(), x, 0)
    return _Pairs(0, x, x, x, 0)


def tf32_allowed(dtype: torch.dtype) -> bool:
    """Whether torch multiplies matrices of this dtype as TF32."""
    return dtype is torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"


def _tile_options(
    device: torch.device,
    dtype: torch.dtype,
    rows: int,
    columns: int,
    dim: int,
    tf32: bool,
    options: dict[str, Any],
) -> dict[str, Any]:
    return options | {
        "EVEN": rows % options["BLOCK_M"] == columns % options["BLOCK_N"] == 0,
        "EVEN_K": dim % options["BLOCK_K"] == 0,
        "PRECISION": "tf32" if tf32 else "ieee",
        # Triton's interpreter reads bfloat16 operands of a product as bit patterns.
        "UPCAST": dtype == torch.bfloat16 and device.type == "cpu",
    }


class _Forward(NamedTuple):
    slabs: tuple[tuple[Launch, Launch | None], ...]  # tiles of some rows; what folds their sums
    merge: Launch
    scratch: int  # words


@planned
def _forward_plan(
    device: torch.device,
    dtype: torch.dtype,
    rows: int,
    columns: int,
    dim: int,
    strides: tuple[int, int, int],
    kind: int,
    has_margin: bool,
    smooth: bool,
    symmetric: bool,
    no_self: bool,
    ignore: int,
    tf32: bool,
) -> _Forward:
    options = config("mpm_nce", device, dtype, dim)
    block_m, block_n = options["BLOCK_M"], options["BLOCK_N"]
    row_blocks, column_blocks = triton.cdiv(rows, block_m), triton.cdiv(columns, block_n)
    # Where there are tiles in plenty a program takes several: fewer sums of rows to store.
    tiles = max(1, min(8, row_blocks * column_blocks // 1056), triton.cdiv(column_blocks, _GRID_Y))
    groups = triton.cdiv(column_blocks, tiles)
    row_programs = triton.cdiv(rows, _ANCHORS)
    column_programs = triton.cdiv(columns, _ANCHORS) if symmetric else 0
    # The sums of all tiles are a part of B × C: rows are taken in slabs whose sums fit.
    numbers = 5 if smooth else 4
    each = fitting(4 * numbers * (groups * block_m + columns * symmetric)) * block_m
    each = min(each, rows)
    # The scratch memory: a counter, sums of rows, of columns, of columns so far, parts of the mean.
    row_field, column_field = groups * each, triton.cdiv(each, block_m) * columns * symmetric
    columns_at = COUNTER.value + numbers * row_field
    folded_at = columns_at + numbers * column_field
    several = each < rows
    parts_at = folded_at + numbers * columns * (several and symmetric)
    merging: dict[str, Any] = {
        "SMOOTH": smooth, "NO_SELF": no_self, "BLOCK_P": 32, "ANCHORS": _ANCHORS, "num_warps": 4,
    }  # fmt: skip
    slabs = []
    for first in range(0, rows, each):
        height = min(each, rows - first)
        blocks = triton.cdiv(height, block_m)
        launch = Launch(
            forward_tiles, (blocks, groups), first, height, rows, columns, dim, *strides, ignore,
            row_field, column_field, columns_at,
            PAIRS=kind, SYMMETRIC=symmetric, MARGIN=has_margin, SMOOTH=smooth, NO_SELF=no_self,
            SLABS=several, TILES=tiles,
            **_tile_options(device, dtype, rows, columns, dim, tf32, options),
        )  # fmt: skip
        fold = None
        if several:
            programs = triton.cdiv(height, _ANCHORS)
            fold = Launch(
                forward_fold, (programs + column_programs,), first, height, rows, columns,
                row_field, column_field, groups, blocks, tiles * block_n, block_m,
                columns_at, folded_at, parts_at, programs, **merging,
            )  # fmt: skip
        slabs.append((launch, fold))
    columns_of = (columns, 1, rows, folded_at) if several else (
        column_field, row_blocks, block_m, columns_at
    )  # fmt: skip
    field, parts, part_size, at = columns_of
    first_program = row_programs if several else 0
    programs = max(1, row_programs - first_program + column_programs)
    merge = Launch(
        forward_merge, (programs,), rows, columns, row_field, field, groups, parts,
        tiles * block_n, part_size, at, parts_at, row_programs, first_program,
        SYMMETRIC=symmetric, **merging,
    )  # fmt: skip
    return _Forward(tuple(slabs), merge, parts_at + 2 * (row_programs + column_programs))


class _Block(NamedTuple):
    """Some rows and columns of ∂Z, and what is launched for them."""

    rows: slice
    columns: slice
    tiles: Launch
    finish: Launch | None


class _Backward(NamedTuple):
    blocks: tuple[_Block, ...]  # those of the same rows one after the other
    largest: tuple[int, int]  # of them
    parts: int
    factor: float


@planned
def _backward_plan(
    device: torch.device,
    dtype: torch.dtype,
    _grad: torch.dtype,
    rows: int,
    columns: int,
    dim: int,
    strides: tuple[int, int, int],
    kind: int,
    has_margin: bool,
    smooth: bool,
    symmetric: bool,
    no_self: bool,
    ignore: int,
    need_image: bool,
    need_text: bool,
    tf32: bool,
) -> _Backward:
    options = config("mpm_nce", device, dtype, dim)
    block_m, block_n = options["BLOCK_M"], options["BLOCK_N"]
    parts = triton.cdiv(rows, block_m) * triton.cdiv(columns, block_n)
    row_slices, column_slices = squares(rows, columns, block_m, block_n, dtype.itemsize)
    blocks = []
    for of_rows, of_columns in itertools.product(row_slices, column_slices):
        height, width = of_rows.stop - of_rows.start, of_columns.stop - of_columns.start
        row_blocks = triton.cdiv(height, block_m)
        tiles = Launch(
            grad_tiles, (row_blocks * triton.cdiv(width, block_n),),
            of_rows.start, of_columns.start, row_blocks, width, rows, columns, dim, *strides,
            ignore,
            PAIRS=kind, SYMMETRIC=symmetric, MARGIN=has_margin, SMOOTH=smooth, NO_SELF=no_self,
            **_tile_options(device, dtype, rows, columns, dim, tf32, options),
        )  # fmt: skip
        finish = None
        rows_done = of_columns.stop == columns
        last = rows_done and of_rows.stop == rows
        if last or (rows_done and need_image):
            x_size = height * dim if need_image else 0
            y_size = columns * dim if need_text and last else 0
            x_programs, y_programs = triton.cdiv(x_size, _FINISH), triton.cdiv(y_size, _FINISH)
            finish = Launch(
                grad_finish, (last + x_programs + y_programs,), x_size, y_size, parts, x_programs,
                SUM=last, BLOCK=_FINISH, num_warps=4,
            )  # fmt: skip
        blocks.append(_Block(of_rows, of_columns, tiles, finish))
    largest = row_slices[0].stop, column_slices[0].stop
    return _Backward(tuple(blocks), largest, parts, factor_of(rows, columns))


def forward(
    image: Tensor,
    text: Tensor,
    positives: Positives,
    scale: Tensor,
    options: MpmNceOptions,
    keep_logits: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, row statistics [3, B], column statistics [3, C] or [3, 0], numbers of anchors [2]).

    Of an anchor, in base 2: shift (Inf where the anchor has no positive), log₂ Σ 2^(Z − shift),
    positives.
    """
    margin, label_smoothing, symmetric, no_self = options
    expect_contrast(image, text, *positives[:3], scale, symmetric, no_self)
    x, y = unit_stride(image, text)
    (rows, dim), columns = x.shape, y.shape[0]
    pairs = _pairs(x, positives)
    plan = _forward_plan(
        x.device, x.dtype, rows, columns, dim,
        (x.stride(0), y.stride(0), pairs.mask_stride), pairs.kind, margin != 0,
        label_smoothing > 0, symmetric, no_self, positives.ignore_index, tf32_allowed(x.dtype),
    )  # fmt: skip
    scratch = x.new_empty(plan.scratch, dtype=torch.float32)
    row_statistics = x.new_empty((3, rows), dtype=torch.float32)
    column_statistics = x.new_empty((3, columns if symmetric else 0), dtype=torch.float32)
    loss = x.new_empty((), dtype=torch.float32)
    anchors = x.new_empty(2, dtype=torch.float32)
    for tiles, fold in plan.slabs:
        tiles(x, y, scale, *pairs[1:4], scratch, floats=(margin,))
        if fold is not None:
            fold(scratch, row_statistics, floats=(label_smoothing,))
    plan.merge(scratch, row_statistics, column_statistics, loss, anchors, floats=(label_smoothing,))
    return loss, row_statistics, column_statistics, anchors


def backward(
    image: Tensor,
    text: Tensor,
    positives: Positives,
    scale: Tensor,
    row_statistics: Tensor,
    column_statistics: Tensor,
    anchors: Tensor,
    grad: Tensor,
    options: MpmNceOptions,
    need_image: bool,
    need_text: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to image, text (contiguous; empty if not needed) and scale."""
    margin, label_smoothing, symmetric, no_self = options
    expect_contrast(image, text, *positives[:3], scale, symmetric, no_self)
    x, y = unit_stride(image, text)
    (rows, dim), columns = x.shape, y.shape[0]
    saved = (row_statistics, column_statistics, anchors)
    expect_saved(saved, rows, columns, symmetric)
    expect("grad", grad, torch.float32, ())
    pairs = _pairs(x, positives)
    plan = _backward_plan(
        x.device, x.dtype, grad.dtype, rows, columns, dim,
        (x.stride(0), y.stride(0), pairs.mask_stride), pairs.kind, margin != 0,
        label_smoothing > 0, symmetric, no_self, positives.ignore_index, need_image, need_text,
        tf32_allowed(x.dtype),
    )  # fmt: skip
    dz = workspace = x.new_empty(plan.largest)
    parts = x.new_empty(plan.parts, dtype=torch.float32)
    # Spelled out: new_empty takes a microsecond longer for a torch.Size.
    grad_x = x.new_empty((rows, dim) if need_image else 0)
    grad_y = y.new_empty((columns, dim) if need_text else 0)
    grad_scale = torch.empty_like(scale)
    x_product = y_product = parts  # stands for the product of a side that needs no gradient
    several = len(plan.blocks) > 1
    if several and need_text:
        y_product = y.new_zeros(y.shape, dtype=torch.float32)
    for of_rows, of_columns, tiles, finish in plan.blocks:
        x_part, y_part = x, y
        if several:
            x_part, y_part = x[of_rows], y[of_columns]
            dz = workspace.view(-1)[: len(x_part) * len(y_part)].view(len(x_part), len(y_part))
        tiles(
            x, y, scale, *pairs[1:4], row_statistics, column_statistics, anchors, workspace, parts,
            floats=(margin, label_smoothing, plan.factor),
        )  # fmt: skip
        if need_image and of_columns.start == 0:
            x_product = product(dz, y_part)
        elif need_image:
            add_product(x_product, dz, y_part)
        if need_text and several:
            add_product(y_product[of_columns], dz.T, x_part)
        elif need_text:
            y_product = product(dz.t(), x_part)
        if finish is not None:
            finish(
                x_product, y_product, grad_x[of_rows] if several and need_image else grad_x, grad_y,
                parts, grad_scale, scale, grad, floats=(plan.factor,),
            )  # fmt: skip
    return grad_x, grad_y, grad_scale
