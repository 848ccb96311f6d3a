"""mpm_nce on a GPU (R-Adapter, arXiv 2408.05749): no B×C matrix, no labels' matrix, no atomics on
floats.

    Z_ij = s·( <x_i, y_j> + δ·[i, j no positive pair] ),   row_i = LSE_j Z_ij − Σ_j w_ij Z_ij
    loss = ½·( mean_i row_i + mean_j col_j ), or the first mean alone

exclude_self (NO_SELF): (i, i) is no pair. Its Z is lower than any, so that 2^(Z − shift) is 0 by
itself; only what counts candidates has to leave it out.

Forward, two launches. `forward_tiles`: a program multiplies BLOCK_M images with some tiles of
BLOCK_N texts; the scale, the margin and the comparison of labels happen in registers; each row and
each column of a tile leaves four numbers (shift, Σ exp(Z − shift), Σ of the positives' Z − shift,
their count), with smoothing a fifth (Σ of all Z − shift). `forward_merge` adds them up in index
order; its last program, found by an integer counter, takes the means.

One exponential serves the row sums and the column sums of a tile, about the tile's largest Z, as
long as no sum is below 2^-87; else each row and column takes its own.

Backward. ∂Z/s is recomputed tile by tile (`grad_tiles`), p − w subtracted in float32 and scaled to
about 1 before the cast to the storage type, into a workspace of bounded size; two library products
with float32 accumulation make the gradients, and `grad_finish` scales and rounds them once. (A
fused product would need a float32 accumulator of BLOCK_M × D, which exceeds the register file from
D = 512 on.) ∂loss/∂s is summed in the tiles. Four launches where one workspace serves all rows.

Precision. Products of 16-bit inputs are exact, sums float32. float32 inputs are multiplied as
float32 (IEEE), unless torch is set to allow TF32. The shape fixes every order: same bits each time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

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
from robustft.kernels.mpm_nce_tiles import COUNTER, counter_of, forward_tiles, grad_tiles

WORKSPACE = 128 << 20  # bytes of ∂Z at a time
_ANCHORS = 32  # anchors of one program of the merge
_FINISH = 2048  # elements of one program of grad_finish: 16 a thread
_SAVED = ("row_statistics", "column_statistics", "anchors")  # what forward keeps for backward


@triton.jit
def _merge_anchors(
    sums, field, parts, n, part_size, candidates, smoothing, out, loss_out, pid,
    SMOOTH: tl.constexpr, NO_SELF: tl.constexpr, BLOCK_P: tl.constexpr, ANCHORS: tl.constexpr,
):  # fmt: skip
    """One block of anchors: their (shift, log of sum, count), and Σ of losses and anchors."""
    anchor = pid * ANCHORS + tl.arange(0, ANCHORS)
    anchor_mask = anchor < n
    shifts = tl.full((BLOCK_P, ANCHORS), float("-inf"), tl.float32)
    for start in range(0, parts, BLOCK_P):
        part = start + tl.arange(0, BLOCK_P)
        mask = (part < parts)[:, None] & anchor_mask[None, :]
        pointers = sums + part.to(tl.int64)[:, None] * n + anchor[None, :]
        shifts = tl.maximum(shifts, tl.load(pointers, mask=mask, other=float("-inf")))
    shift = tl.where(anchor_mask, tl.max(shifts, 0), 0.0)

    total = tl.zeros((BLOCK_P, ANCHORS), tl.float32)
    positives = tl.zeros((BLOCK_P, ANCHORS), tl.float32)
    counts = tl.zeros((BLOCK_P, ANCHORS), tl.float32)
    everything = tl.zeros((BLOCK_P, ANCHORS), tl.float32)
    for start in range(0, parts, BLOCK_P):
        part = start + tl.arange(0, BLOCK_P)
        mask = (part < parts)[:, None] & anchor_mask[None, :]
        pointers = sums + part.to(tl.int64)[:, None] * n + anchor[None, :]
        down = tl.where(mask, tl.load(pointers, mask=mask, other=0.0) - shift[None, :], 0.0)
        hit_counts = tl.load(pointers + 3 * field, mask=mask, other=0.0)
        total += tl.load(pointers + field, mask=mask, other=0.0) * tl.exp(down)
        positives += tl.load(pointers + 2 * field, mask=mask, other=0.0) + hit_counts * down
        if SMOOTH:
            size = tl.minimum(part_size, candidates - part * part_size).to(tl.float32)[:, None]
            if NO_SELF:
                size -= (anchor[None, :] // part_size == part[:, None]).to(tl.float32)
            everything += tl.load(pointers + 4 * field, mask=mask, other=0.0) + size * down
        counts += hit_counts
    log_total = tl.log(tl.where(anchor_mask, tl.sum(total, 0), 1.0))
    count, positive = tl.sum(counts, 0), tl.sum(positives, 0)
    tl.store(out + anchor, tl.where(count > 0, shift, float("inf")), mask=anchor_mask)
    tl.store(out + n + anchor, log_total, mask=anchor_mask)
    tl.store(out + 2 * n + anchor, count, mask=anchor_mask)

    negatives = candidates - count
    if NO_SELF:
        negatives -= 1
    epsilon = tl.where(negatives > 0, smoothing, 0.0)
    target = (1 - epsilon) / tl.maximum(count, 1.0) * positive
    if SMOOTH:
        target += epsilon / tl.maximum(negatives, 1.0) * (tl.sum(everything, 0) - positive)
    is_anchor = anchor_mask & (count > 0)
    # A NaN in a row that is no anchor must show, too.
    bad = anchor_mask & (log_total != log_total)
    losses = tl.where(is_anchor | bad, log_total - target, 0.0)
    tl.store(loss_out + 2 * pid, tl.sum(losses, 0))
    tl.store(loss_out + 2 * pid + 1, tl.sum(is_anchor.to(tl.float32), 0))


@triton.jit
def _mean(parts, begin, end, BLOCK: tl.constexpr):
    losses = tl.zeros((BLOCK,), tl.float32)
    anchors = tl.zeros((BLOCK,), tl.float32)
    for start in range(begin, end, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        losses += tl.load(parts + 2 * offsets, mask=offsets < end, other=0.0, cache_modifier=".cg")
        anchors += tl.load(
            parts + 2 * offsets + 1, mask=offsets < end, other=0.0, cache_modifier=".cg"
        )
    return tl.math.div_rn(tl.sum(losses, 0), tl.sum(anchors, 0)), tl.sum(anchors, 0)


@triton.jit
def forward_merge(
    scratch, rows_out, columns_out, loss, anchors_out, smoothing,
    B, C, row_field, column_field, row_parts, column_parts, row_part_size, column_part_size,
    columns_at, parts_at, row_programs,
    SYMMETRIC: tl.constexpr, SMOOTH: tl.constexpr, NO_SELF: tl.constexpr, BLOCK_P: tl.constexpr,
    ANCHORS: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    programs = tl.num_programs(0)
    row_sums, column_sums, parts = scratch + COUNTER, scratch + columns_at, scratch + parts_at
    if pid < row_programs:
        _merge_anchors(
            row_sums, row_field, row_parts, B, row_part_size, C, smoothing, rows_out, parts,
            pid, SMOOTH, NO_SELF, BLOCK_P, ANCHORS,
        )  # fmt: skip
    elif SYMMETRIC:
        _merge_anchors(
            column_sums, column_field, column_parts, C, column_part_size, B, smoothing, columns_out,
            parts + 2 * row_programs, pid - row_programs, SMOOTH, NO_SELF, BLOCK_P,
            ANCHORS,
        )  # fmt: skip
    # All of this program's stores come before its count.
    tl.debug_barrier()
    if tl.atomic_add(counter_of(scratch), 1, sem="acq_rel") == programs - 1:
        mean, anchors = _mean(parts, 0, row_programs, 256)
        tl.store(anchors_out, anchors)
        if SYMMETRIC:
            other, column_anchors = _mean(parts, row_programs, programs, 256)
            tl.store(anchors_out + 1, column_anchors)
            mean = 0.5 * (mean + other)
        else:
            tl.store(anchors_out + 1, 0.0)
        tl.store(loss, mean)


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


def tf32_allowed() -> bool:
    """Whether torch multiplies float32 matrices as TF32."""
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


def _dot_options(
    device: torch.device, dtype: torch.dtype, dim: int, tf32: bool, options: dict[str, Any]
) -> dict[str, Any]:
    return options | {
        "EVEN_K": dim % options["BLOCK_K"] == 0,
        "PRECISION": "tf32" if tf32 else "ieee",
        # Triton's interpreter reads bfloat16 operands of a product as bit patterns.
        "UPCAST": dtype == torch.bfloat16 and device.type == "cpu",
    }


class _Forward(NamedTuple):
    tiles: Launch
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
    row_blocks = triton.cdiv(rows, options["BLOCK_M"])
    column_blocks = triton.cdiv(columns, options["BLOCK_N"])
    # Where there are tiles in plenty a program takes several: fewer sums of rows to store.
    tiles = max(1, min(8, row_blocks * column_blocks // 1056))
    groups = triton.cdiv(column_blocks, tiles)
    row_programs = triton.cdiv(rows, _ANCHORS)
    programs = row_programs + (triton.cdiv(columns, _ANCHORS) if symmetric else 0)
    column_parts = row_blocks if symmetric else 0
    # The scratch memory: a counter, sums of rows, sums of columns, parts of the mean.
    row_field, column_field = groups * rows, column_parts * columns
    columns_at = COUNTER.value + (5 if smooth else 4) * row_field
    parts_at = columns_at + (5 if smooth else 4) * column_field
    return _Forward(
        Launch(
            forward_tiles, (row_blocks, groups), rows, columns, dim, *strides, ignore,
            row_field, column_field, columns_at,
            PAIRS=kind, SYMMETRIC=symmetric, MARGIN=has_margin, SMOOTH=smooth, NO_SELF=no_self,
            TILES=tiles, **_dot_options(device, dtype, dim, tf32, options),
        ),
        Launch(
            forward_merge, (programs,), rows, columns, row_field, column_field,
            groups, column_parts, tiles * options["BLOCK_N"], options["BLOCK_M"],
            columns_at, parts_at, row_programs,
            SYMMETRIC=symmetric, SMOOTH=smooth, NO_SELF=no_self, BLOCK_P=32, ANCHORS=_ANCHORS,
            num_warps=4,
        ),
        parts_at + 2 * programs,
    )  # fmt: skip


class _Backward(NamedTuple):
    blocks: tuple[tuple[int, Launch, Launch | None], ...]  # first row, tiles, finish
    each: int  # rows of a block
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
    block_m = options["BLOCK_M"]
    column_blocks = triton.cdiv(columns, options["BLOCK_N"])
    row_blocks = triton.cdiv(rows, block_m)
    parts = row_blocks * column_blocks
    each = max(block_m, WORKSPACE // (columns * dtype.itemsize) // block_m * block_m)
    each = rows if each >= rows else each
    blocks = []
    for first in range(0, rows, each):
        count, last = min(each, rows - first), first + each >= rows
        tiles = Launch(
            grad_tiles, (triton.cdiv(count, block_m), column_blocks),
            first, rows, columns, dim, *strides, ignore,
            PAIRS=kind, SYMMETRIC=symmetric, MARGIN=has_margin, SMOOTH=smooth, NO_SELF=no_self,
            **_dot_options(device, dtype, dim, tf32, options),
        )  # fmt: skip
        finish = None
        if last or need_image:
            x_size = count * dim if need_image else 0
            y_size = columns * dim if need_text and last else 0
            x_programs, y_programs = triton.cdiv(x_size, _FINISH), triton.cdiv(y_size, _FINISH)
            finish = Launch(
                grad_finish, (last + x_programs + y_programs,), x_size, y_size, parts, x_programs,
                SUM=last, BLOCK=_FINISH, num_warps=4,
            )  # fmt: skip
        blocks.append((first, tiles, finish))
    # p − w over the number of anchors is about 1/B: float16 wants it near 1.
    factor = float(1 << (max(rows, columns) - 1).bit_length())
    return _Backward(tuple(blocks), each, parts, factor)


def saved_shapes(
    rows: int, columns: int, symmetric: bool, keep_logits: int
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Shapes of what forward returns for backward; nothing of size B×C is kept."""
    return (3, rows), (3, columns if symmetric else 0), (2,)


def forward(
    image: Tensor,
    text: Tensor,
    positives: Positives,
    scale: Tensor,
    options: MpmNceOptions,
    keep_logits: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, row statistics [3, B], column statistics [3, C] or [3, 0], numbers of anchors [2]).

    Of an anchor: shift (Inf where the anchor has no positive), log Σ exp(Z − shift), positives.
    """
    margin, label_smoothing, symmetric, no_self = options
    expect_contrast(image, text, *positives[:3], scale, symmetric, no_self)
    x, y = unit_stride(image, text)
    rows, columns = len(x), len(y)
    pairs = _pairs(x, positives)
    plan = _forward_plan(
        x.device, x.dtype, rows, columns, x.shape[1],
        (x.stride(0), y.stride(0), pairs.mask_stride), pairs.kind, margin != 0,
        label_smoothing > 0, symmetric, no_self, positives.ignore_index, tf32_allowed(),
    )  # fmt: skip
    scratch = x.new_empty(plan.scratch, dtype=torch.float32)
    row_statistics = x.new_empty((3, rows), dtype=torch.float32)
    column_statistics = x.new_empty((3, columns if symmetric else 0), dtype=torch.float32)
    loss = x.new_empty((), dtype=torch.float32)
    anchors = x.new_empty(2, dtype=torch.float32)
    plan.tiles(x, y, scale, *pairs[1:4], scratch, floats=(margin,))
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
    rows, columns = len(x), len(y)
    saved = (row_statistics, column_statistics, anchors)
    shapes = saved_shapes(rows, columns, symmetric, 0)
    for name, part, shape in zip(_SAVED, saved, shapes, strict=True):
        expect(name, part, torch.float32, shape)
    expect("grad", grad, torch.float32, ())
    pairs = _pairs(x, positives)
    plan = _backward_plan(
        x.device, x.dtype, grad.dtype, rows, columns, x.shape[1],
        (x.stride(0), y.stride(0), pairs.mask_stride), pairs.kind, margin != 0,
        label_smoothing > 0, symmetric, no_self, positives.ignore_index, need_image, need_text,
        tf32_allowed(),
    )  # fmt: skip
    grad_z = x.new_empty((plan.each, columns))
    parts = x.new_empty(plan.parts, dtype=torch.float32)
    grad_x = x.new_empty(x.shape if need_image else 0)
    grad_y = y.new_empty(y.shape if need_text else 0)
    grad_scale = torch.empty_like(scale)
    # Stands for the product of a side that needs no gradient.
    x_product = y_product = parts[:0]
    for first, tiles, finish in plan.blocks:
        block, dz = x, grad_z
        if len(plan.blocks) > 1:
            block = x[first : first + plan.each]
            dz = grad_z[: len(block)]
        tiles(
            x, y, scale, *pairs[1:4], row_statistics, column_statistics, anchors, grad_z, parts,
            floats=(margin, label_smoothing, plan.factor),
        )  # fmt: skip
        if need_image:
            x_product = product(dz, y)
        if need_text and first == 0:
            y_product = product(dz.T, block)
        elif need_text:
            add_product(y_product, dz.T, block)
        if finish is not None:
            finish(
                x_product, y_product, grad_x[first:] if first else grad_x, grad_y, parts,
                grad_scale, scale, grad, floats=(plan.factor,),
            )  # fmt: skip
    return grad_x, grad_y, grad_scale
