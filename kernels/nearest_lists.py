"""What nearest does with lists in Triton (kernels/nearest.py): radii, bounds, distances, the k-th.

A program takes a query (in the interpreter several). Order statistics are found by bisection on the
bits of non-negative floats, which sort as the floats do: 31 counts over values that lie in the
first cache.
"""

from __future__ import annotations

import triton
import triton.language as tl

from robustft.backends.search import interface, packing

_TINY = tl.constexpr(packing.TINY)
_WIDER = tl.constexpr(packing.WIDER)
_SHARE = tl.constexpr(packing.SHARE)
_SCALE = tl.constexpr(packing.SCALE)
_RESIDUAL = tl.constexpr(packing.RESIDUAL)
_NORM = tl.constexpr(packing.NORM)
_RADIUS = tl.constexpr(interface.RADIUS)
_REACH = tl.constexpr(interface.REACH)
_FLOOR = tl.constexpr(interface.FLOOR)
_INFINITE = tl.constexpr(0x7F800000)  # bits of inf
_INF = tl.constexpr(float("inf"))


@triton.jit
def _bounds(product, q, q_field_stride, i, v, v_field_stride, row, mask, slack):
    """Lower and upper bounds of the distances of queries i [R] and rows [R, BLOCK]."""
    q_norm, v_norm = (
        tl.load(q + _NORM * q_field_stride + i),
        tl.load(v + _NORM * v_field_stride + row, mask=mask),
    )
    norms = q_norm[:, None] + v_norm
    scale = tl.load(v + _SCALE * v_field_stride + row, mask=mask)
    s = norms - 2 * product * tl.load(q + _SCALE * q_field_stride + i)[:, None] * scale
    e = slack * norms + _TINY
    rho = tl.load(q + _RESIDUAL * q_field_stride + i)[:, None]
    rho += tl.load(v + _RESIDUAL * v_field_stride + row, mask=mask)
    # Written so that a NaN gives 0 and inf.
    low = tl.sqrt(tl.where(s - e > 0, s - e, 0.0)) * (1 - _WIDER) - rho * (1 + _WIDER)
    high = (tl.sqrt(tl.where(s + e > 0, s + e, 0.0)) + rho) * (1 + _WIDER)
    return tl.where(low > 0, low, 0.0), tl.where(v_norm < _INF, high, _INF)


@triton.jit
def _kth(values, counts, longest, k, R: tl.constexpr, BLOCK: tl.constexpr):
    """The k-th smallest (k [R]) of the first `counts` floats ≥ 0 at each of R addresses, or inf.

    most: the largest of the counts.
    """
    j = tl.arange(0, BLOCK)
    found = tl.zeros((R,), tl.int32)
    for bit in range(31):
        # The answer is at least found + 2^(30 − bit) if fewer than k values are below that.
        trial = found + (1 << (30 - bit))
        below = tl.zeros((R,), tl.int32)
        for start in range(0, longest, BLOCK):
            mask = (start + j)[None, :] < counts[:, None]
            x = tl.load(values[:, None] + start + j[None, :], mask=mask, other=0.0)
            below += tl.sum(
                (mask & (x.to(tl.int32, bitcast=True) < trial[:, None])).to(tl.int32), 1
            )
        found = tl.where(below < k, trial, found)
    return tl.minimum(found, _INFINITE).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["queries", "rank"])
def aim_rows(
    products, q, sample, aims, slack, q_field_stride, sample_field_stride, queries, n, rank,
    R: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """SearchKernels.aim for R queries; products [queries, n] become upper bounds."""
    i = tl.program_id(0) * R + tl.arange(0, R)
    query_mask = i < queries
    j = tl.arange(0, BLOCK)
    values = products + tl.minimum(i, queries - 1).to(tl.int64) * n
    for start in range(0, n, BLOCK):
        row = tl.broadcast_to((start + j)[None, :], (R, BLOCK))
        mask = (row < n) & query_mask[:, None]
        product = tl.load(values[:, None] + row, mask=mask, other=0.0)
        _, high = _bounds(
            product, q, q_field_stride, i, sample, sample_field_stride, row, mask, slack
        )
        tl.store(values[:, None] + row, high, mask=mask)
    tl.debug_barrier()
    radius = _kth(values, tl.where(query_mask, n, 0), n, rank + tl.zeros((R,), tl.int32), R, BLOCK)
    norm = tl.load(q + _NORM * q_field_stride + i)
    t = radius * (1 + _WIDER) + tl.load(q + _RESIDUAL * q_field_stride + i)
    floor = norm * (1 - slack) - (1 + _SHARE) * t * t * (1 + slack) - _TINY
    on = query_mask & (radius < _INF) & (norm < _INF)
    tl.store(aims + _RADIUS * q_field_stride + i, tl.where(on, radius, 0.0))
    tl.store(aims + _REACH * q_field_stride + i, tl.where(on, 2 * t, 0.0))
    tl.store(aims + _FLOOR * q_field_stride + i, tl.where(on, floor, _INF))


@triton.jit(do_not_specialize=["queries", "k"])
def resolve_rows(
    q, v, lists, values, upper, counts, kept, ranks, slack,
    q_field_stride, v_field_stride, queries, k, capacity,
    EVERY: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """SearchKernels.resolve for R queries; values become lower bounds."""
    i = tl.program_id(0) * R + tl.arange(0, R)
    query_mask = i < queries
    count = tl.minimum(tl.load(counts + i, mask=query_mask, other=0), capacity)
    most = tl.max(count, 0)
    j = tl.arange(0, BLOCK)
    base = tl.minimum(i, queries - 1).to(tl.int64) * capacity
    for start in range(0, most, BLOCK):
        mask = (start + j)[None, :] < count[:, None]
        slots = base[:, None] + start + j[None, :]
        row = tl.load(lists + slots, mask=mask, other=0)
        product = tl.load(values + slots, mask=mask, other=0.0)
        low, high = _bounds(product, q, q_field_stride, i, v, v_field_stride, row, mask, slack)
        tl.store(values + slots, low, mask=mask)
        tl.store(upper + slots, high, mask=mask)
    tl.debug_barrier()
    rank = k + tl.zeros((R,), tl.int32)
    highest = _kth(upper + base, count, most, rank, R, BLOCK)
    lowest = highest * 0
    if not EVERY:
        lowest = _kth(values + base, count, most, rank, R, BLOCK)
    below, stored = tl.zeros((R,), tl.int32), tl.zeros((R,), tl.int32)
    for start in range(0, most, BLOCK):
        mask = (start + j)[None, :] < count[:, None]
        slots = base[:, None] + start + j[None, :]
        row = tl.load(lists + slots, mask=mask, other=0)
        keep = mask & (tl.load(values + slots, mask=mask, other=0.0) <= highest[:, None])
        if not EVERY:
            nearer = mask & (tl.load(upper + slots, mask=mask, other=0.0) < lowest[:, None])
            below += tl.sum(nearer.to(tl.int32), 1)
            keep = keep & (nearer == 0)
        one = keep.to(tl.int32)
        slot = stored[:, None] + tl.cumsum(one, 1) - one
        tl.debug_barrier()  # rows are read before others take their slots
        tl.store(lists + base[:, None] + slot, row, mask=keep)
        stored += tl.sum(one, 1)
    tl.store(kept + i, stored, mask=query_mask)
    tl.store(ranks + i, k - below, mask=query_mask)


@triton.jit(do_not_specialize=["first_row", "rows", "splits"])
def exact_rows(
    q, v, lists, values, kept, q_stride, v_stride, first_row, rows, dim, capacity, splits,
    BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """SearchKernels.exact for one query, or a share of its rows."""
    i = (tl.program_id(0) // splits).to(tl.int64)
    count = tl.load(kept + i)
    k = tl.arange(0, BLOCK_K)
    for start in range(tl.program_id(0) % splits * BLOCK_C, count, splits * BLOCK_C):
        slots = start + tl.arange(0, BLOCK_C)
        row = tl.load(lists + i * capacity + slots, mask=slots < count, other=-1) - first_row
        row_mask = (slots < count) & (row >= 0) & (row < rows)
        pointers = v + row.to(tl.int64)[:, None] * v_stride + k[None, :]
        total = tl.zeros((BLOCK_C,), tl.float64)
        for d in range(0, dim, BLOCK_K):
            mask = row_mask[:, None] & (k < dim - d)[None, :]
            a = tl.load(q + i * q_stride + d + k, mask=k < dim - d, other=0.0).to(tl.float64)
            b = tl.load(pointers + d, mask=mask, other=0.0).to(tl.float64)
            difference = tl.where(mask, a[None, :] - b, 0.0)
            total += tl.sum(difference * difference, 1)
        tl.store(values + i * capacity + slots, total.to(tl.float32), mask=row_mask)


@triton.jit(do_not_specialize=["queries"])
def select_rows(
    values, counts, kept, ranks, q, aims, kth, safe, q_field_stride, queries, capacity,
    R: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """SearchKernels.select for R queries."""
    i = tl.program_id(0) * R + tl.arange(0, R)
    query_mask = i < queries
    count = tl.load(kept + i, mask=query_mask, other=0)
    rank = tl.load(ranks + i, mask=query_mask, other=1)
    base = tl.minimum(i, queries - 1).to(tl.int64) * capacity
    found = _kth(values + base, count, tl.max(count, 0), rank, R, BLOCK)
    radius = tl.load(aims + _RADIUS * q_field_stride + i)
    norm = tl.load(q + _NORM * q_field_stride + i)
    missing = norm != norm
    certain = found <= radius * radius * (1 - 4 * _WIDER)
    certain = certain & (tl.load(counts + i, mask=query_mask, other=0) <= capacity)
    tl.store(kth + i, tl.where(missing, float("nan"), found), mask=query_mask)
    tl.store(safe + i, certain | missing, mask=query_mask)
