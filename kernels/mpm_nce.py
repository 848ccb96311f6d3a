"""mpm_nce on a GPU (R-Adapter, arXiv 2408.05749): no B×C matrix, no labels' matrix, no atomics on
floats.

    Z_ij = s·( <x_i, y_j> + δ·[i, j no positive pair] ),   row_i = LSE_j Z_ij − Σ_j w_ij Z_ij
    loss = ½·( mean_i row_i + mean_j col_j ), or the first mean alone

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

from robustft.kernels.configs import config
from robustft.kernels.launch import Launch, planned
from robustft.kernels.tensors import add_product, product, unit_stride

WORKSPACE = 128 << 20  # bytes of ∂Z at a time
_LINES = 32  # anchors of one program of the merge
_FINISH = 2048  # elements of one program of grad_finish: 16 a thread
_COUNTER = tl.constexpr(4)  # words before the sums in the scratch memory: they stay aligned
_LEAST = tl.constexpr(2.0**-87)  # a sum to trust: what underflows at 2^-126 is 2^-39 of it


@triton.jit
def _positives(
    rows, columns, B, C, row_labels, column_labels, mask, mask_stride, ignore, PAIRS: tl.constexpr
):
    """[BLOCK_M, BLOCK_N]: which pairs are positive. PAIRS: 0 the diagonal, 1 labels, 2 a mask.

    A row beyond the last may only be found positive in a column beyond the last.
    """
    if PAIRS == 0:
        return rows[:, None] == columns[None, :]
    elif PAIRS == 1:
        of_row = tl.load(row_labels + rows, mask=rows < B, other=ignore)
        of_column = tl.load(column_labels + columns, mask=columns < C, other=ignore)
        return (of_row[:, None] == of_column[None, :]) & (of_row != ignore)[:, None]
    else:
        inside = (rows < B)[:, None] & (columns < C)[None, :]
        where = rows.to(tl.int64)[:, None] * mask_stride + columns[None, :]
        return tl.load(mask + where, mask=inside, other=0) != 0


@triton.jit
def _any_positive(
    rows, columns, B, C, row_labels, column_labels, mask, mask_stride, ignore, PAIRS: tl.constexpr
):
    """Whether a tile has a positive pair (or, on the diagonal, may have one)."""
    if PAIRS == 0:
        return (tl.max(rows, 0) >= tl.min(columns, 0)) & (tl.max(columns, 0) >= tl.min(rows, 0))
    else:
        positive = _positives(
            rows, columns, B, C, row_labels, column_labels, mask, mask_stride, ignore, PAIRS
        )
        return tl.max(tl.max(positive.to(tl.int32), 1), 0) > 0


@triton.jit
def _margins(
    rows, columns, B, C, row_labels, column_labels, mask, mask_stride, ignore, margin, met,
    PAIRS: tl.constexpr,
):  # fmt: skip
    """The margin of each pair; `met`: whether any is positive."""
    margins = tl.full((rows.shape[0], columns.shape[0]), margin, tl.float32)
    if met:
        positive = _positives(
            rows, columns, B, C, row_labels, column_labels, mask, mask_stride, ignore, PAIRS
        )
        margins = tl.where(positive, 0.0, margins)
    return margins


@triton.jit
def _products(
    x, y, first_row, first_column, B, C, dim, x_stride, y_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """<x_i, y_j> [BLOCK_M, BLOCK_N], float32, of the rows and columns from the first ones on."""
    k = tl.arange(0, BLOCK_K)
    # Rows past the end read the last one; they are masked where they would count. Offsets within a
    # tile fit 32 bits: half the registers of addresses.
    rows = tl.minimum(tl.arange(0, BLOCK_M), B - 1 - first_row)
    columns = tl.minimum(tl.arange(0, BLOCK_N), C - 1 - first_column)
    x_at = rows[:, None] * x_stride + k[None, :]
    y_at = columns[None, :] * y_stride + k[:, None]
    x += tl.cast(first_row, tl.int64) * x_stride
    y += tl.cast(first_column, tl.int64) * y_stride
    products = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, dim, BLOCK_K):
        if EVEN_K:
            a, b = tl.load(x + x_at), tl.load(y + y_at)
        else:
            a = tl.load(x + x_at, mask=(k < dim - start)[None, :], other=0.0)
            b = tl.load(y + y_at, mask=(k < dim - start)[:, None], other=0.0)
        if UPCAST:
            a, b = a.to(tl.float32), b.to(tl.float32)
        products = tl.dot(a, b, products, input_precision=PRECISION)
        x += BLOCK_K
        y += BLOCK_K
    return products


@triton.jit
def _counter(scratch):
    """Of the programs of `forward_merge` that are done: the first word."""
    return scratch.to(tl.pointer_type(tl.int32), bitcast=True)


@triton.jit
def forward_tiles(
    x, y, scale, row_labels, column_labels, mask, scratch, margin,
    B, C, dim, x_stride, y_stride, mask_stride, ignore, row_field, column_field, columns_at,
    PAIRS: tl.constexpr, SYMMETRIC: tl.constexpr, MARGIN: tl.constexpr, SMOOTH: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Sums of one block of rows over TILES tiles of columns, and of each of those columns."""
    pid_m, group = tl.program_id(0), tl.program_id(1)
    row_sums, column_sums = scratch + _COUNTER, scratch + columns_at
    rows = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    here = rows < B
    s = tl.load(scale).to(tl.float32)
    # A row's running sums; before the first tile they are about −Inf and empty.
    shift = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    positives = tl.zeros((BLOCK_M,), tl.float32)
    count = tl.zeros((BLOCK_M,), tl.float32)
    everything = tl.zeros((BLOCK_M,), tl.float32)
    seen = 0.0
    last = tl.minimum((group + 1) * TILES, tl.cdiv(C, BLOCK_N))
    # What could be kept from tile to tile would take registers that the sums need.
    for tile in tl.range(group * TILES, last, disable_licm=True):
        columns = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        there = columns < C
        z = _products(
            x, y, pid_m * BLOCK_M, tile * BLOCK_N, B, C, dim, x_stride, y_stride,
            BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K, PRECISION, UPCAST,
        )  # fmt: skip
        # Positives are rare: most tiles have none, and what only the others need is in a branch.
        # Nothing wide is kept from one branch to the next: registers are what limits a tile.
        met = _any_positive(
            rows, columns, B, C, row_labels, column_labels, mask, mask_stride, ignore, PAIRS
        )
        if MARGIN:
            z += _margins(
                rows, columns, B, C, row_labels, column_labels, mask, mask_stride, ignore, margin,
                met, PAIRS,
            )  # fmt: skip
        z = s * z
        if (tl.max(rows, 0) >= B) | (tl.max(columns, 0) >= C):
            z = tl.where(here[:, None] & there[None, :], z, float("-inf"))

        # Exponentials about the tile's largest Z serve rows and columns, if no sum is too small.
        top_row = tl.max(z, 1)
        top = tl.max(top_row, 0)
        e = tl.exp(z - top)
        e_row = tl.sum(e, 1)
        least = tl.min(tl.where(here, e_row, 1.0), 0)
        if SYMMETRIC:
            e_column = tl.sum(e, 0)
            least = tl.minimum(least, tl.min(tl.where(there, e_column, 1.0), 0))
        line = column_sums + pid_m.to(tl.int64) * C + columns
        if SYMMETRIC and SMOOTH:
            a_column = tl.sum(tl.where(z > float("-inf"), z - top, 0.0), 0)
        if least >= _LEAST:
            top_row = tl.where(here, top, 0.0)
            if SYMMETRIC:
                tl.store(line, tl.where(there, top, 0.0), mask=there)
                tl.store(line + column_field, e_column, mask=there)
                if SMOOTH:
                    tl.store(line + 4 * column_field, a_column, mask=there)
        else:  # also where anything is NaN
            top_row = tl.where(here, top_row, 0.0)
            e_row = tl.sum(tl.exp(z - top_row[:, None]), 1)
            if SYMMETRIC:
                top_column = tl.where(there, tl.max(z, 0), 0.0)
                tl.store(line, top_column, mask=there)
                e_column = tl.sum(tl.exp(z - top_column[None, :]), 0)
                tl.store(line + column_field, e_column, mask=there)
                if SMOOTH:
                    height = tl.minimum(BLOCK_M, B - pid_m * BLOCK_M).to(tl.float32)
                    a_column += height * (top - top_column)
                    tl.store(line + 4 * column_field, a_column, mask=there)

        p_row = tl.zeros((BLOCK_M,), tl.float32)
        n_row = tl.zeros((BLOCK_M,), tl.float32)
        if met:
            hit = _positives(
                rows, columns, B, C, row_labels, column_labels, mask, mask_stride, ignore, PAIRS
            )
            # 1 as z − z + 1, in the layout of z: converting another would take registers.
            p_row = tl.sum(tl.where(hit, z - top_row[:, None], 0.0), 1)
            n_row = tl.sum(tl.where(hit, z - z + 1.0, 0.0), 1)
            if SYMMETRIC:
                tl.debug_barrier()  # the shifts were stored by other threads
                about = tl.load(line, mask=there, other=0.0)
                p_column = tl.sum(tl.where(hit, z - about[None, :], 0.0), 0)
                n_column = tl.sum(tl.where(hit, z - z + 1.0, 0.0), 0)
                tl.store(line + 2 * column_field, p_column, mask=there)
                tl.store(line + 3 * column_field, n_column, mask=there)
        elif SYMMETRIC:
            tl.store(line + 2 * column_field, 0.0, mask=there)
            tl.store(line + 3 * column_field, 0.0, mask=there)

        # Merge into the running sums, about the larger of the two shifts.
        higher = tl.maximum(shift, top_row)
        up = top_row - higher
        down = tl.where(seen > 0, shift - higher, 0.0)
        total = tl.where(seen > 0, total * tl.exp(down), 0.0) + e_row * tl.exp(up)
        positives += count * down + p_row + n_row * up
        width = tl.minimum(BLOCK_N, C - tile * BLOCK_N).to(tl.float32)
        if SMOOTH:
            a_row = tl.sum(tl.where(z > float("-inf"), z - top, 0.0), 1)
            everything += seen * down + a_row + width * (top - higher)
        count += n_row
        seen += width
        shift = higher

    line = row_sums + group.to(tl.int64) * B + rows
    tl.store(line, shift, mask=here)
    tl.store(line + row_field, total, mask=here)
    tl.store(line + 2 * row_field, positives, mask=here)
    tl.store(line + 3 * row_field, count, mask=here)
    if SMOOTH:
        tl.store(line + 4 * row_field, everything, mask=here)
    if (pid_m == 0) & (group == 0):
        tl.store(_counter(scratch), 0)


@triton.jit
def _merge_lines(
    sums, field, parts, n, part_size, candidates, smoothing, out, loss_out, pid,
    SMOOTH: tl.constexpr, BLOCK_P: tl.constexpr, LINES: tl.constexpr,
):  # fmt: skip
    """One block of anchors: their (shift, log of sum, count), and Σ of losses and anchors."""
    anchor = pid * LINES + tl.arange(0, LINES)
    here = anchor < n
    tops = tl.full((BLOCK_P, LINES), float("-inf"), tl.float32)
    for start in range(0, parts, BLOCK_P):
        part = start + tl.arange(0, BLOCK_P)
        inside = (part < parts)[:, None] & here[None, :]
        at = sums + part.to(tl.int64)[:, None] * n + anchor[None, :]
        tops = tl.maximum(tops, tl.load(at, mask=inside, other=float("-inf")))
    shift = tl.where(here, tl.max(tops, 0), 0.0)

    total = tl.zeros((BLOCK_P, LINES), tl.float32)
    positives = tl.zeros((BLOCK_P, LINES), tl.float32)
    counts = tl.zeros((BLOCK_P, LINES), tl.float32)
    everything = tl.zeros((BLOCK_P, LINES), tl.float32)
    for start in range(0, parts, BLOCK_P):
        part = start + tl.arange(0, BLOCK_P)
        inside = (part < parts)[:, None] & here[None, :]
        at = sums + part.to(tl.int64)[:, None] * n + anchor[None, :]
        down = tl.where(inside, tl.load(at, mask=inside, other=0.0) - shift[None, :], 0.0)
        hits = tl.load(at + 3 * field, mask=inside, other=0.0)
        total += tl.load(at + field, mask=inside, other=0.0) * tl.exp(down)
        positives += tl.load(at + 2 * field, mask=inside, other=0.0) + hits * down
        if SMOOTH:
            size = tl.minimum(part_size, candidates - part * part_size).to(tl.float32)[:, None]
            everything += tl.load(at + 4 * field, mask=inside, other=0.0) + size * down
        counts += hits
    log_total = tl.log(tl.where(here, tl.sum(total, 0), 1.0))
    count, positive = tl.sum(counts, 0), tl.sum(positives, 0)
    tl.store(out + anchor, tl.where(count > 0, shift, float("inf")), mask=here)
    tl.store(out + n + anchor, log_total, mask=here)
    tl.store(out + 2 * n + anchor, count, mask=here)

    negatives = candidates - count
    epsilon = tl.where(negatives > 0, smoothing, 0.0)
    target = (1 - epsilon) / tl.maximum(count, 1.0) * positive
    if SMOOTH:
        target += epsilon / tl.maximum(negatives, 1.0) * (tl.sum(everything, 0) - positive)
    is_anchor = here & (count > 0)
    # A NaN in a row that is no anchor must show, too.
    bad = here & (log_total != log_total)
    losses = tl.where(is_anchor | bad, log_total - target, 0.0)
    tl.store(loss_out + 2 * pid, tl.sum(losses, 0))
    tl.store(loss_out + 2 * pid + 1, tl.sum(is_anchor.to(tl.float32), 0))


@triton.jit
def _mean(parts, begin, end, BLOCK: tl.constexpr):
    losses = tl.zeros((BLOCK,), tl.float32)
    anchors = tl.zeros((BLOCK,), tl.float32)
    for start in range(begin, end, BLOCK):
        i = start + tl.arange(0, BLOCK)
        losses += tl.load(parts + 2 * i, mask=i < end, other=0.0, cache_modifier=".cg")
        anchors += tl.load(parts + 2 * i + 1, mask=i < end, other=0.0, cache_modifier=".cg")
    return tl.math.div_rn(tl.sum(losses, 0), tl.sum(anchors, 0)), tl.sum(anchors, 0)


@triton.jit
def forward_merge(
    scratch, rows_out, columns_out, loss, anchors_out, smoothing,
    B, C, row_field, column_field, row_parts, column_parts, row_part_size, column_part_size,
    columns_at, parts_at, row_programs,
    SYMMETRIC: tl.constexpr, SMOOTH: tl.constexpr, BLOCK_P: tl.constexpr, LINES: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    programs = tl.num_programs(0)
    row_sums, column_sums, parts = scratch + _COUNTER, scratch + columns_at, scratch + parts_at
    if pid < row_programs:
        _merge_lines(
            row_sums, row_field, row_parts, B, row_part_size, C, smoothing, rows_out, parts,
            pid, SMOOTH, BLOCK_P, LINES,
        )  # fmt: skip
    elif SYMMETRIC:
        _merge_lines(
            column_sums, column_field, column_parts, C, column_part_size, B, smoothing, columns_out,
            parts + 2 * row_programs, pid - row_programs, SMOOTH, BLOCK_P,
            LINES,
        )  # fmt: skip
    # All of this program's stores come before its count.
    tl.debug_barrier()
    if tl.atomic_add(_counter(scratch), 1, sem="acq_rel") == programs - 1:
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
def _targets(lines, n, anchor, here, candidates, smoothing, SMOOTH: tl.constexpr):
    """w of an anchor's positives and of its negatives; `lines` as forward_merge leaves them."""
    count = tl.load(lines + 2 * n + anchor, mask=here, other=0.0)
    w_positive = 1.0 / tl.maximum(count, 1.0)
    w_negative = tl.zeros_like(count)
    if SMOOTH:
        negatives = candidates - count
        epsilon = tl.where(negatives > 0, smoothing, 0.0)
        w_positive *= 1 - epsilon
        w_negative = tl.where(count > 0, epsilon / tl.maximum(negatives, 1.0), 0.0)
    return w_positive, w_negative


@triton.jit
def grad_tiles(
    x, y, scale, row_labels, column_labels, mask, row_lines, column_lines, anchors, grad_z, parts,
    margin, smoothing, factor, first_row, B, C, dim, x_stride, y_stride, mask_stride, ignore,
    PAIRS: tl.constexpr, SYMMETRIC: tl.constexpr, MARGIN: tl.constexpr, SMOOTH: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """factor·∂loss/∂Z of a tile, and Σ of it times Z/s for the scale.

    p first, of rows, then of columns; w then, which few pairs have. An anchor without a positive
    has the shift +Inf, and so p = 0.
    """
    pid_m, pid_n = tl.program_id(0), tl.program_id(1)
    own_rows = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    rows = first_row + own_rows
    columns = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    here, there = rows < B, columns < C
    cosines = _products(
        x, y, first_row + pid_m * BLOCK_M, pid_n * BLOCK_N, B, C, dim, x_stride, y_stride,
        BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K, PRECISION, UPCAST,
    )  # fmt: skip
    met = _any_positive(
        rows, columns, B, C, row_labels, column_labels, mask, mask_stride, ignore, PAIRS
    )
    if MARGIN:
        cosines += _margins(
            rows, columns, B, C, row_labels, column_labels, mask, mask_stride, ignore, margin, met,
            PAIRS,
        )  # fmt: skip
    s = tl.load(scale).to(tl.float32)
    share = 1.0 / tl.load(anchors)
    if SYMMETRIC:
        share *= 0.5
        column_share = 0.5 / tl.load(anchors + 1)
    shift = tl.load(row_lines + rows, mask=here, other=0.0)
    log_total = tl.load(row_lines + B + rows, mask=here, other=0.0)
    dz = tl.exp((s * cosines - shift[:, None]) - log_total[:, None]) * share
    if SYMMETRIC:
        shift = tl.load(column_lines + columns, mask=there, other=0.0)
        log_total = tl.load(column_lines + C + columns, mask=there, other=0.0)
        dz += tl.exp((s * cosines - shift[None, :]) - log_total[None, :]) * column_share
    if SMOOTH:
        _, w_negative = _targets(row_lines, B, rows, here, C, smoothing, SMOOTH)
        dz -= (w_negative * share)[:, None]
        if SYMMETRIC:
            _, w_negative = _targets(column_lines, C, columns, there, B, smoothing, SMOOTH)
            dz -= (w_negative * column_share)[None, :]
    if met:
        hit = _positives(
            rows, columns, B, C, row_labels, column_labels, mask, mask_stride, ignore, PAIRS
        )
        w_positive, w_negative = _targets(row_lines, B, rows, here, C, smoothing, SMOOTH)
        dz -= tl.where(hit, ((w_positive - w_negative) * share)[:, None], 0.0)
        if SYMMETRIC:
            w_positive, w_negative = _targets(column_lines, C, columns, there, B, smoothing, SMOOTH)
            dz -= tl.where(hit, ((w_positive - w_negative) * column_share)[None, :], 0.0)
    inside = here[:, None] & there[None, :]
    if (tl.max(rows, 0) >= B) | (tl.max(columns, 0) >= C):
        dz = tl.where(inside, dz, 0.0)
    tile = (first_row // BLOCK_M + pid_m) * tl.num_programs(1) + pid_n
    tl.store(parts + tile, tl.sum(dz * cosines))
    where = own_rows.to(tl.int64)[:, None] * C + columns[None, :]
    tl.store(grad_z + where, (dz * factor).to(grad_z.dtype.element_ty), mask=inside)


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
    own = tl.arange(0, BLOCK)
    if SUM:
        if pid == 0:  # first of all: it takes longest
            total = tl.zeros((BLOCK,), tl.float64)
            for start in range(0, parts_size, BLOCK):
                i = start + own
                total += tl.load(parts + i, mask=i < parts_size, other=0.0).to(tl.float64)
            tl.store(grad_scale, (tl.sum(total, 0) * upstream).to(grad_scale.dtype.element_ty))
        pid -= 1
    if (pid >= 0) & (pid < x_programs):
        i = pid.to(tl.int64) * BLOCK + own
        value = tl.load(x_product + i, mask=i < x_size, other=0.0) * unscale
        tl.store(grad_x + i, value.to(grad_x.dtype.element_ty), mask=i < x_size)
    elif pid >= x_programs:
        i = (pid - x_programs).to(tl.int64) * BLOCK + own
        value = tl.load(y_product + i, mask=i < y_size, other=0.0) * unscale
        tl.store(grad_y + i, value.to(grad_y.dtype.element_ty), mask=i < y_size)


class _Pairs(NamedTuple):
    """Where positives come from; what a kind does not use points at something harmless."""

    kind: int  # PAIRS of the kernels
    row_labels: Tensor
    column_labels: Tensor
    mask: Tensor
    mask_stride: int


def _pairs(x: Tensor, rows: Tensor | None, columns: Tensor | None, mask: Tensor | None) -> _Pairs:
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
    ignore: int,
    tf32: bool,
) -> _Forward:
    options = config("mpm_nce", device, dtype, dim)
    row_blocks = triton.cdiv(rows, options["BLOCK_M"])
    column_blocks = triton.cdiv(columns, options["BLOCK_N"])
    # Where there are tiles in plenty a program takes several: fewer sums of rows to store.
    tiles = max(1, min(8, row_blocks * column_blocks // 1056))
    groups = triton.cdiv(column_blocks, tiles)
    row_programs = triton.cdiv(rows, _LINES)
    programs = row_programs + (triton.cdiv(columns, _LINES) if symmetric else 0)
    column_parts = row_blocks if symmetric else 0
    # The scratch memory: a counter, sums of rows, sums of columns, parts of the mean.
    row_field, column_field = groups * rows, column_parts * columns
    columns_at = _COUNTER.value + (5 if smooth else 4) * row_field
    parts_at = columns_at + (5 if smooth else 4) * column_field
    return _Forward(
        Launch(
            forward_tiles, (row_blocks, groups), rows, columns, dim, *strides, ignore,
            row_field, column_field, columns_at,
            PAIRS=kind, SYMMETRIC=symmetric, MARGIN=has_margin, SMOOTH=smooth, TILES=tiles,
            **_dot_options(device, dtype, dim, tf32, options),
        ),
        Launch(
            forward_merge, (programs,), rows, columns, row_field, column_field,
            groups, column_parts, tiles * options["BLOCK_N"], options["BLOCK_M"],
            columns_at, parts_at, row_programs,
            SYMMETRIC=symmetric, SMOOTH=smooth, BLOCK_P=32, LINES=_LINES, num_warps=4,
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
            PAIRS=kind, SYMMETRIC=symmetric, MARGIN=has_margin, SMOOTH=smooth,
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
    image_labels: Tensor | None,
    text_labels: Tensor | None,
    mask: Tensor | None,
    scale: Tensor,
    margin: float,
    label_smoothing: float,
    symmetric: bool,
    ignore_index: int,
    keep_logits: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, row lines [3, B], column lines [3, C] or [3, 0], numbers of anchors [2]).

    A line: shift (Inf where the anchor has no positive), log Σ exp(Z − shift), positives.
    """
    x, y = unit_stride(image, text)
    rows, columns = len(x), len(y)
    pairs = _pairs(x, image_labels, text_labels, mask)
    plan = _forward_plan(
        x.device, x.dtype, rows, columns, x.shape[1],
        (x.stride(0), y.stride(0), pairs.mask_stride), pairs.kind, margin != 0,
        label_smoothing > 0, symmetric, ignore_index, tf32_allowed(),
    )  # fmt: skip
    scratch = x.new_empty(plan.scratch, dtype=torch.float32)
    row_lines = x.new_empty((3, rows), dtype=torch.float32)
    column_lines = x.new_empty((3, columns if symmetric else 0), dtype=torch.float32)
    loss = x.new_empty((), dtype=torch.float32)
    anchors = x.new_empty(2, dtype=torch.float32)
    plan.tiles(x, y, scale, *pairs[1:4], scratch, floats=(margin,))
    plan.merge(scratch, row_lines, column_lines, loss, anchors, floats=(label_smoothing,))
    return loss, row_lines, column_lines, anchors


def backward(
    image: Tensor,
    text: Tensor,
    image_labels: Tensor | None,
    text_labels: Tensor | None,
    mask: Tensor | None,
    scale: Tensor,
    row_lines: Tensor,
    column_lines: Tensor,
    anchors: Tensor,
    grad: Tensor,
    margin: float,
    label_smoothing: float,
    symmetric: bool,
    ignore_index: int,
    need_image: bool,
    need_text: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to image, text (contiguous; empty if not needed) and scale."""
    x, y = unit_stride(image, text)
    rows, columns = len(x), len(y)
    pairs = _pairs(x, image_labels, text_labels, mask)
    plan = _backward_plan(
        x.device, x.dtype, grad.dtype, rows, columns, x.shape[1],
        (x.stride(0), y.stride(0), pairs.mask_stride), pairs.kind, margin != 0,
        label_smoothing > 0, symmetric, ignore_index, need_image, need_text, tf32_allowed(),
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
            x, y, scale, *pairs[1:4], row_lines, column_lines, anchors, grad_z, parts,
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
