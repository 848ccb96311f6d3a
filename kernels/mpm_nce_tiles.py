"""The tiles of mpm_nce (kernels/mpm_nce.py), where its time goes: products and what follows each.

A thread holds 64 products of a 128 × 128 tile and, of every column that it meets, each number that
is in use; so few of those are in use at a time. Exponentials are checked by their sums, sums leave
as soon as they are there, what few pairs need is in branches, and nothing wide is kept from one
branch, or one tile, to the next. docs/kernels/mpm_nce.md has the registers that this leaves.
"""

from __future__ import annotations

import triton
import triton.language as tl

# In the kernels below, as the first things to know:
# pointers: x [B, D], y [C, D] in the storage type; row_labels [B], column_labels [C] int64; mask
#   [B, C] uint8; scale a scalar; row_statistics [3, B] and column_statistics [3, C] float32
#   (shift, log₂ of the sum, positives); grad_z [rows of the block, C]; scratch: the counter, sums.
# rows, columns: indices of the tile's anchors [BLOCK_M], [BLOCK_N]; row_mask, column_mask: which of
#   them exist. A name in _offsets is added to a pointer, one in _out is a pointer to write to.
# EVEN: B and C are multiples of the tile's sides, so that all exist; what asks for it is not there.

COUNTER = tl.constexpr(4)  # words before the sums in the scratch memory: they stay aligned
_LOG2E = tl.constexpr(1.4426950408889634)  # Z is s·log₂e·(…): 2^Z takes no multiplication
_LEAST = tl.constexpr(2.0**-87)  # a sum to trust: what underflows at 2^-126 is 2^-39 of it
_NOWHERE = tl.constexpr(-(2.0**126))  # Z of a pair that is none: below all others, yet no −Inf


@triton.jit
def _existing(indices, size, EVEN: tl.constexpr):
    """Which indices are below `size`; where all are, as a constant that the compiler sees."""
    if EVEN:
        return tl.full(indices.shape, True, tl.int1)
    else:
        return indices < size


@triton.jit
def _positives(
    rows, columns, row_mask, column_mask, row_labels, column_labels, mask, mask_stride, ignore,
    PAIRS: tl.constexpr,
):  # fmt: skip
    """[BLOCK_M, BLOCK_N]: which pairs are positive. PAIRS: 0 the diagonal, 1 labels, 2 a mask.

    A row beyond the last may only be found positive in a column beyond the last.
    """
    if PAIRS == 0:
        return rows[:, None] == columns[None, :]
    elif PAIRS == 1:
        of_row = tl.load(row_labels + rows, mask=row_mask, other=ignore)
        of_column = tl.load(column_labels + columns, mask=column_mask, other=ignore)
        return (of_row[:, None] == of_column[None, :]) & (of_row != ignore)[:, None]
    else:
        bounds = row_mask[:, None] & column_mask[None, :]
        offsets = rows.to(tl.int64)[:, None] * mask_stride + columns[None, :]
        return tl.load(mask + offsets, mask=bounds, other=0) != 0


@triton.jit
def _meets_diagonal(first_row, first_column, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Whether a tile may have a pair (i, i)."""
    return (first_row + BLOCK_M > first_column) & (first_column + BLOCK_N > first_row)


@triton.jit
def _any_positive(
    first_row, first_column, rows, columns, row_mask, column_mask, row_labels, column_labels, mask,
    mask_stride, ignore, PAIRS: tl.constexpr,
):  # fmt: skip
    """Whether a tile has a positive pair (or, on the diagonal, may have one)."""
    if PAIRS == 0:
        return _meets_diagonal(first_row, first_column, rows.shape[0], columns.shape[0])
    else:
        positive = _positives(
            rows, columns, row_mask, column_mask, row_labels, column_labels, mask, mask_stride,
            ignore, PAIRS,
        )  # fmt: skip
        return tl.max(tl.max(positive.to(tl.int32), 1), 0) > 0


@triton.jit
def _margins(
    rows, columns, row_mask, column_mask, row_labels, column_labels, mask, mask_stride, ignore,
    margin, has_positive, PAIRS: tl.constexpr,
):  # fmt: skip
    """The margin of each pair; `met`: whether any is positive."""
    margins = tl.full((rows.shape[0], columns.shape[0]), margin, tl.float32)
    if has_positive:
        positive = _positives(
            rows, columns, row_mask, column_mask, row_labels, column_labels, mask, mask_stride,
            ignore, PAIRS,
        )  # fmt: skip
        margins = tl.where(positive, 0.0, margins)
    return margins


@triton.jit
def _products(
    x, y, first_row, first_column, B, C, dim, x_stride, y_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN: tl.constexpr,
    EVEN_K: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """<x_i, y_j> [BLOCK_M, BLOCK_N], float32, of the rows and columns from the first ones on."""
    k = tl.arange(0, BLOCK_K)
    # Offsets within a tile fit 32 bits: half the registers of addresses.
    rows, columns = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    if not EVEN:  # rows past the end read the last one; they are masked where they would count
        rows = tl.minimum(rows, B - 1 - first_row)
        columns = tl.minimum(columns, C - 1 - first_column)
    x_offsets = rows[:, None] * x_stride + k[None, :]
    y_offsets = columns[None, :] * y_stride + k[:, None]
    x += tl.cast(first_row, tl.int64) * x_stride
    y += tl.cast(first_column, tl.int64) * y_stride
    products = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, dim, BLOCK_K):
        if EVEN_K:
            a, b = tl.load(x + x_offsets), tl.load(y + y_offsets)
        else:
            a = tl.load(x + x_offsets, mask=(k < dim - start)[None, :], other=0.0)
            b = tl.load(y + y_offsets, mask=(k < dim - start)[:, None], other=0.0)
        if UPCAST:
            a, b = a.to(tl.float32), b.to(tl.float32)
        products = tl.dot(a, b, products, input_precision=PRECISION)
        x += BLOCK_K
        y += BLOCK_K
    return products


@triton.jit
def counter_of(scratch):
    """Of the programs of `forward_merge` that are done: the first word."""
    return scratch.to(tl.pointer_type(tl.int32), bitcast=True)


@triton.jit
def forward_tiles(
    x, y, scale, row_labels, column_labels, mask, scratch, margin,
    first_row, height, B, C, dim, x_stride, y_stride, mask_stride, ignore, row_field, column_field,
    columns_at,
    PAIRS: tl.constexpr, SYMMETRIC: tl.constexpr, MARGIN: tl.constexpr, SMOOTH: tl.constexpr,
    NO_SELF: tl.constexpr, SLABS: tl.constexpr, TILES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN: tl.constexpr,
    EVEN_K: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Sums of one block of rows over TILES tiles of columns, and of each of those columns; of the
    `height` rows from first_row on, which the scratch memory is for."""
    if not SLABS:  # all rows: numbers that are known take no registers
        first_row, height = 0, B
    pid_m, group = tl.program_id(0), tl.program_id(1)
    row_sums, column_sums = scratch + COUNTER, scratch + columns_at
    row_start = first_row + pid_m * BLOCK_M
    rows = row_start + tl.arange(0, BLOCK_M)
    row_mask = _existing(rows, B, EVEN)
    s = tl.load(scale).to(tl.float32) * _LOG2E
    # A row's running sums; before the first tile they are about −Inf and empty.
    shift = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    positives = tl.zeros((BLOCK_M,), tl.float32)
    count = tl.zeros((BLOCK_M,), tl.float32)
    everything = tl.zeros((BLOCK_M,), tl.float32)
    seen = 0.0
    LOWEST: tl.constexpr = _NOWHERE if NO_SELF else float("-inf")
    last = tl.minimum((group + 1) * TILES, tl.cdiv(C, BLOCK_N))
    # What could be kept from tile to tile would take registers that the sums need.
    for tile in tl.range(group * TILES, last, disable_licm=True):
        column_start = tile * BLOCK_N
        columns = column_start + tl.arange(0, BLOCK_N)
        column_mask = _existing(columns, C, EVEN)
        z = _products(
            x, y, row_start, column_start, B, C, dim, x_stride, y_stride, BLOCK_M, BLOCK_N,
            BLOCK_K, EVEN, EVEN_K, PRECISION, UPCAST,
        )  # fmt: skip
        # Positives are rare: most tiles have none, and what only the others need is in a branch.
        # Nothing wide is kept from one branch to the next: registers are what limits a tile.
        has_positive = _any_positive(
            row_start, column_start, rows, columns, row_mask, column_mask, row_labels,
            column_labels, mask, mask_stride, ignore, PAIRS,
        )  # fmt: skip
        if MARGIN:
            z += _margins(
                rows, columns, row_mask, column_mask, row_labels, column_labels, mask, mask_stride,
                ignore, margin, has_positive, PAIRS,
            )  # fmt: skip
        z = s * z
        if not EVEN:  # noqa: SIM102 (a branch of the compiler)
            if (row_start + BLOCK_M > B) | (column_start + BLOCK_N > C):
                z = tl.where(row_mask[:, None] & column_mask[None, :], z, float("-inf"))
        if NO_SELF:  # noqa: SIM102
            if _meets_diagonal(row_start, column_start, BLOCK_M, BLOCK_N):
                z = tl.where(rows[:, None] == columns[None, :], _NOWHERE, z)

        # Exponentials about the tile's largest Z serve rows and columns, if no sum is too small.
        # (A maximum of maxima names no axis: Triton 3.6 could not compile it for sm_100.)
        top_row = tl.max(z, 1)
        top = tl.max(top_row)
        e = tl.exp2(z - top)
        e_row = tl.sum(e, 1)
        least = tl.min(tl.where(row_mask, e_row, 1.0))
        if SYMMETRIC:
            e_column = tl.sum(e, 0)
            least = tl.minimum(least, tl.min(tl.where(column_mask, e_column, 1.0)))
        column_out = column_sums + pid_m.to(tl.int64) * C + columns
        if SYMMETRIC and SMOOTH:
            a_column = tl.sum(tl.where(z > LOWEST, z - top, 0.0), 0)
        if least >= _LEAST:
            top_row = tl.where(row_mask, top, 0.0)
            if SYMMETRIC:
                tl.store(column_out, tl.where(column_mask, top, 0.0), mask=column_mask)
                tl.store(column_out + column_field, e_column, mask=column_mask)
                if SMOOTH:
                    tl.store(column_out + 4 * column_field, a_column, mask=column_mask)
        else:  # also where anything is NaN
            top_row = tl.where(row_mask, top_row, 0.0)
            e_row = tl.sum(tl.exp2(z - top_row[:, None]), 1)
            if SYMMETRIC:
                top_column = tl.where(column_mask, tl.max(z, 0), 0.0)
                tl.store(column_out, top_column, mask=column_mask)
                e_column = tl.sum(tl.exp2(z - top_column[None, :]), 0)
                tl.store(column_out + column_field, e_column, mask=column_mask)
                if SMOOTH:
                    of_column = tl.minimum(BLOCK_M, height - pid_m * BLOCK_M).to(tl.float32)
                    if NO_SELF:
                        of_column -= (columns // BLOCK_M == first_row // BLOCK_M + pid_m).to(
                            tl.float32
                        )
                    a_column += of_column * (top - top_column)
                    tl.store(column_out + 4 * column_field, a_column, mask=column_mask)

        p_row = tl.zeros((BLOCK_M,), tl.float32)
        n_row = tl.zeros((BLOCK_M,), tl.float32)
        if has_positive:
            hit = _positives(
                rows, columns, row_mask, column_mask, row_labels, column_labels, mask, mask_stride,
                ignore, PAIRS,
            )  # fmt: skip
            if NO_SELF:
                hit &= rows[:, None] != columns[None, :]
            # 1 as z − z + 1, in the layout of z: converting another would take registers.
            p_row = tl.sum(tl.where(hit, z - top_row[:, None], 0.0), 1)
            n_row = tl.sum(tl.where(hit, z - z + 1.0, 0.0), 1)
            if SYMMETRIC:
                tl.debug_barrier()  # the shifts were stored by other threads
                column_shift = tl.load(column_out, mask=column_mask, other=0.0)
                p_column = tl.sum(tl.where(hit, z - column_shift[None, :], 0.0), 0)
                n_column = tl.sum(tl.where(hit, z - z + 1.0, 0.0), 0)
                tl.store(column_out + 2 * column_field, p_column, mask=column_mask)
                tl.store(column_out + 3 * column_field, n_column, mask=column_mask)
        elif SYMMETRIC:
            tl.store(column_out + 2 * column_field, 0.0, mask=column_mask)
            tl.store(column_out + 3 * column_field, 0.0, mask=column_mask)

        # Merge into the running sums, about the larger of the two shifts.
        higher = tl.maximum(shift, top_row)
        up = top_row - higher
        down = tl.where(seen > 0, shift - higher, 0.0)
        total = tl.where(seen > 0, total * tl.exp2(down), 0.0) + e_row * tl.exp2(up)
        positives += count * down + p_row + n_row * up
        width = tl.minimum(BLOCK_N, C - column_start).to(tl.float32)
        if SMOOTH:
            a_row = tl.sum(tl.where(z > LOWEST, z - top, 0.0), 1)
            of_row, so_far = width, seen
            if NO_SELF:
                of_row -= (rows // BLOCK_N == tile).to(tl.float32)
                met = (rows >= group * TILES * BLOCK_N) & (rows < tile * BLOCK_N)
                so_far -= met.to(tl.float32)
            everything += so_far * down + a_row + of_row * (top - higher)
        count += n_row
        seen += width
        shift = higher

    row_out = row_sums + group.to(tl.int64) * height + (rows - first_row)
    tl.store(row_out, shift, mask=row_mask)
    tl.store(row_out + row_field, total, mask=row_mask)
    tl.store(row_out + 2 * row_field, positives, mask=row_mask)
    tl.store(row_out + 3 * row_field, count, mask=row_mask)
    if SMOOTH:
        tl.store(row_out + 4 * row_field, everything, mask=row_mask)
    if (pid_m == 0) & (group == 0):
        tl.store(counter_of(scratch), 0)


@triton.jit
def _targets(statistics, n, anchor, anchor_mask, candidates, smoothing, SMOOTH: tl.constexpr):
    """w of an anchor's positives and of its negatives; statistics as forward_merge leaves them."""
    count = tl.load(statistics + 2 * n + anchor, mask=anchor_mask, other=0.0)
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
    x, y, scale, row_labels, column_labels, mask, row_statistics, column_statistics, anchors,
    grad_z, parts,
    margin, smoothing, factor, first_row, first_column, row_blocks, width,
    B, C, dim, x_stride, y_stride, mask_stride, ignore,
    PAIRS: tl.constexpr, SYMMETRIC: tl.constexpr, MARGIN: tl.constexpr, SMOOTH: tl.constexpr,
    NO_SELF: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN: tl.constexpr,
    EVEN_K: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """factor·∂loss/∂Z of a tile, and Σ of it times Z/s for the scale. grad_z has the rows from
    first_row on and `width` columns from first_column on.

    p first, of rows, then of columns; w then, which few pairs have. An anchor without a positive
    has the shift +Inf, and so p = 0.
    """
    # In one dimension, of which a grid may be 2^31 long; blocks of the same columns side by side.
    pid_m, pid_n = tl.program_id(0) % row_blocks, tl.program_id(0) // row_blocks
    block_rows = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    block_columns = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    rows, columns = first_row + block_rows, first_column + block_columns
    row_start, column_start = first_row + pid_m * BLOCK_M, first_column + pid_n * BLOCK_N
    row_mask, column_mask = _existing(rows, B, EVEN), _existing(columns, C, EVEN)
    cosines = _products(
        x, y, row_start, column_start, B, C, dim, x_stride, y_stride, BLOCK_M, BLOCK_N, BLOCK_K,
        EVEN, EVEN_K, PRECISION, UPCAST,
    )  # fmt: skip
    has_positive = _any_positive(
        row_start, column_start, rows, columns, row_mask, column_mask, row_labels, column_labels,
        mask, mask_stride, ignore, PAIRS,
    )  # fmt: skip
    if MARGIN:
        cosines += _margins(
            rows, columns, row_mask, column_mask, row_labels, column_labels, mask, mask_stride,
            ignore, margin, has_positive, PAIRS,
        )  # fmt: skip
    s = tl.load(scale).to(tl.float32) * _LOG2E
    of_row, of_column = C, B  # candidates
    if NO_SELF:
        of_row, of_column = C - 1, B - 1
    share = 1.0 / tl.load(anchors)
    if SYMMETRIC:
        share *= 0.5
        column_share = 0.5 / tl.load(anchors + 1)
    shift = tl.load(row_statistics + rows, mask=row_mask, other=0.0)
    log_total = tl.load(row_statistics + B + rows, mask=row_mask, other=0.0)
    dz = tl.exp2((s * cosines - shift[:, None]) - log_total[:, None]) * share
    if SYMMETRIC:
        shift = tl.load(column_statistics + columns, mask=column_mask, other=0.0)
        log_total = tl.load(column_statistics + C + columns, mask=column_mask, other=0.0)
        dz += tl.exp2((s * cosines - shift[None, :]) - log_total[None, :]) * column_share
    if SMOOTH:
        _, w_negative = _targets(row_statistics, B, rows, row_mask, of_row, smoothing, SMOOTH)
        dz -= (w_negative * share)[:, None]
        if SYMMETRIC:
            _, w_negative = _targets(
                column_statistics, C, columns, column_mask, of_column, smoothing, SMOOTH
            )
            dz -= (w_negative * column_share)[None, :]
    if has_positive:
        hit = _positives(
            rows, columns, row_mask, column_mask, row_labels, column_labels, mask, mask_stride,
            ignore, PAIRS,
        )  # fmt: skip
        w_positive, w_negative = _targets(
            row_statistics, B, rows, row_mask, of_row, smoothing, SMOOTH
        )
        dz -= tl.where(hit, ((w_positive - w_negative) * share)[:, None], 0.0)
        if SYMMETRIC:
            w_positive, w_negative = _targets(
                column_statistics, C, columns, column_mask, of_column, smoothing, SMOOTH
            )
            dz -= tl.where(hit, ((w_positive - w_negative) * column_share)[None, :], 0.0)
    bounds = row_mask[:, None] & column_mask[None, :]
    if not EVEN:  # noqa: SIM102 (a branch of the compiler)
        if (row_start + BLOCK_M > B) | (column_start + BLOCK_N > C):
            dz = tl.where(bounds, dz, 0.0)
    if NO_SELF:  # noqa: SIM102
        if _meets_diagonal(row_start, column_start, BLOCK_M, BLOCK_N):
            dz = tl.where(rows[:, None] == columns[None, :], 0.0, dz)
    tile = (first_row // BLOCK_M + pid_m) * tl.cdiv(C, BLOCK_N) + first_column // BLOCK_N + pid_n
    tl.store(parts + tile, tl.sum(dz * cosines))
    offsets = block_rows.to(tl.int64)[:, None] * width + block_columns[None, :]
    tl.store(grad_z + offsets, (dz * factor).to(grad_z.dtype.element_ty), mask=bounds)
