"""The second half of mpm_nce's forward pass (kernels/mpm_nce.py): what tiles left, added up.

Sums are in base 2: Z stands for s·log₂e·(…), so that 2^(Z − shift) takes no multiplication, and the
loss is ln 2 times what comes out.

A part is what one tile (of columns) or one group of tiles (of rows) left of an anchor: shift,
Σ 2^(Z − shift), Σ of the positives' Z − shift, their count, and with smoothing Σ of all Z − shift;
`field` words apart, parts n words apart.
"""

from __future__ import annotations

import triton
import triton.language as tl

from robustft.kernels.mpm_nce_tiles import COUNTER, counter_of

_LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _added(
    sums, field, parts, n, anchor, anchor_mask, own, part_size, candidates, before,
    SMOOTH: tl.constexpr, NO_SELF: tl.constexpr, BLOCK_P: tl.constexpr, ANCHORS: tl.constexpr,
):  # fmt: skip
    """The five numbers of some anchors over all parts, about a shift that is at least `before`.

    own: an anchor's own number among the candidates, of which a part holds `part_size`.
    """
    shifts = tl.full((BLOCK_P, ANCHORS), float("-inf"), tl.float32)
    for start in range(0, parts, BLOCK_P):
        part = start + tl.arange(0, BLOCK_P)
        mask = (part < parts)[:, None] & anchor_mask[None, :]
        pointers = sums + part.to(tl.int64)[:, None] * n + anchor[None, :]
        shifts = tl.maximum(shifts, tl.load(pointers, mask=mask, other=float("-inf")))
    shift = tl.where(anchor_mask, tl.maximum(tl.max(shifts, 0), before), 0.0)

    own_part = tl.where(own >= 0, own // part_size, -1)
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
        total += tl.load(pointers + field, mask=mask, other=0.0) * tl.exp2(down)
        positives += tl.load(pointers + 2 * field, mask=mask, other=0.0) + hit_counts * down
        if SMOOTH:
            size = tl.minimum(part_size, candidates - part * part_size).to(tl.float32)[:, None]
            if NO_SELF:
                size -= (own_part[None, :] == part[:, None]).to(tl.float32)
            everything += tl.load(pointers + 4 * field, mask=mask, other=0.0) + size * down
        counts += hit_counts
    return shift, tl.sum(total, 0), tl.sum(positives, 0), tl.sum(counts, 0), tl.sum(everything, 0)


@triton.jit
def _merge_anchors(
    sums, field, parts, n, part_size, candidates, smoothing, out, out_field, first, loss_out, pid,
    SMOOTH: tl.constexpr, NO_SELF: tl.constexpr, BLOCK_P: tl.constexpr, ANCHORS: tl.constexpr,
):  # fmt: skip
    """One block of anchors: their (shift, log₂ of sum, count), and Σ of losses and anchors.

    first: number of the first of these n anchors among all.
    """
    anchor = pid * ANCHORS + tl.arange(0, ANCHORS)
    anchor_mask = anchor < n
    shift, total, positive, count, everything = _added(
        sums, field, parts, n, anchor, anchor_mask, first + anchor, part_size, candidates,
        float("-inf"), SMOOTH, NO_SELF, BLOCK_P, ANCHORS,
    )  # fmt: skip
    log_total = tl.log2(tl.where(anchor_mask, total, 1.0))
    out += first + anchor
    tl.store(out, tl.where(count > 0, shift, float("inf")), mask=anchor_mask)
    tl.store(out + out_field, log_total, mask=anchor_mask)
    tl.store(out + 2 * out_field, count, mask=anchor_mask)

    negatives = candidates - count
    if NO_SELF:
        negatives -= 1
    epsilon = tl.where(negatives > 0, smoothing, 0.0)
    target = (1 - epsilon) / tl.maximum(count, 1.0) * positive
    if SMOOTH:
        target += epsilon / tl.maximum(negatives, 1.0) * (everything - positive)
    is_anchor = anchor_mask & (count > 0)
    # A NaN in a row that is no anchor must show, too.
    bad = anchor_mask & (log_total != log_total)
    losses = tl.where(is_anchor | bad, _LN2 * (log_total - target), 0.0)
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
    columns_at, parts_at, row_programs, first_program,
    SYMMETRIC: tl.constexpr, SMOOTH: tl.constexpr, NO_SELF: tl.constexpr, BLOCK_P: tl.constexpr,
    ANCHORS: tl.constexpr,
):  # fmt: skip
    """All anchors' statistics, and the loss. Programs before `first_program` have been run."""
    pid = first_program + tl.program_id(0)
    programs = first_program + tl.num_programs(0)
    row_sums, column_sums, parts = scratch + COUNTER, scratch + columns_at, scratch + parts_at
    if pid < row_programs:
        _merge_anchors(
            row_sums, row_field, row_parts, B, row_part_size, C, smoothing, rows_out, B, 0, parts,
            pid, SMOOTH, NO_SELF, BLOCK_P, ANCHORS,
        )  # fmt: skip
    elif SYMMETRIC:
        _merge_anchors(
            column_sums, column_field, column_parts, C, column_part_size, B, smoothing, columns_out,
            C, 0, parts + 2 * row_programs, pid - row_programs, SMOOTH, NO_SELF, BLOCK_P,
            ANCHORS,
        )  # fmt: skip
    # All of this program's stores come before its count.
    tl.debug_barrier()
    if tl.atomic_add(counter_of(scratch), 1, sem="acq_rel") == tl.num_programs(0) - 1:
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
def forward_fold(
    scratch, rows_out, smoothing,
    first_row, height, B, C, row_field, column_field, row_parts, column_parts, row_part_size,
    column_part_size, columns_at, folded_at, parts_at, row_programs,
    SMOOTH: tl.constexpr, NO_SELF: tl.constexpr, BLOCK_P: tl.constexpr, ANCHORS: tl.constexpr,
):  # fmt: skip
    """After the tiles of rows first_row … first_row + height: the statistics of those rows, and
    what is known of the columns (five numbers, C words apart) with their part in it."""
    pid = tl.program_id(0)
    if pid < row_programs:
        parts = scratch + parts_at + first_row // ANCHORS * 2
        _merge_anchors(
            scratch + COUNTER, row_field, row_parts, height, row_part_size, C, smoothing, rows_out,
            B, first_row, parts, pid, SMOOTH, NO_SELF, BLOCK_P, ANCHORS,
        )  # fmt: skip
    else:
        anchor = (pid - row_programs) * ANCHORS + tl.arange(0, ANCHORS)
        anchor_mask = anchor < C
        known = scratch + folded_at + anchor
        known_mask = anchor < tl.where(first_row > 0, C, 0)
        before = tl.load(known, mask=known_mask, other=float("-inf"))
        shift, total, positive, count, everything = _added(
            scratch + columns_at, column_field, column_parts, C, anchor, anchor_mask,
            anchor - first_row, column_part_size, height, before, SMOOTH, NO_SELF, BLOCK_P, ANCHORS,
        )  # fmt: skip
        down = tl.where(known_mask, before - shift, 0.0)
        hit_counts = tl.load(known + 3 * C, mask=known_mask, other=0.0)
        total += tl.load(known + C, mask=known_mask, other=0.0) * tl.exp2(down)
        positive += tl.load(known + 2 * C, mask=known_mask, other=0.0) + hit_counts * down
        tl.store(known, shift, mask=anchor_mask)
        tl.store(known + C, total, mask=anchor_mask)
        tl.store(known + 2 * C, positive, mask=anchor_mask)
        tl.store(known + 3 * C, count + hit_counts, mask=anchor_mask)
        if SMOOTH:
            size = first_row + tl.zeros((ANCHORS,), tl.float32)
            if NO_SELF:
                size -= (anchor < first_row).to(tl.float32)
            everything += tl.load(known + 4 * C, mask=known_mask, other=0.0) + size * down
            tl.store(known + 4 * C, everything, mask=anchor_mask)
