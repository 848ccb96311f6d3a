"""The screening of nearest in Triton (kernels/nearest.py): tiles of products, tested in registers.

Where a tile has a row to list it takes one atomic add a query and tile for its slots.
"""

from __future__ import annotations

import triton
import triton.language as tl

from robustft.backends.search import interface, packing

_ROWS = tl.constexpr(packing.ROWS)
_SCALE = tl.constexpr(packing.SCALE)
_NEAR = tl.constexpr(packing.NEAR)
_LEVEL = tl.constexpr(packing.LEVEL)
_REACH = tl.constexpr(interface.REACH)
_FLOOR = tl.constexpr(interface.FLOOR)
_INF = tl.constexpr(float("inf"))


@triton.jit
def _most(x):
    """The largest of a vector. Triton 3.6 does not compile a reduction of a vector that comes from
    products for sm_100, so it is one of a matrix."""
    return tl.max(x[:, None], 0).item()


@triton.jit(do_not_specialize=["queries", "rows", "first_row"])
def screen_tiles(
    q, q_numbers, aims, v, v_numbers, lists, values, counts,
    q_field_stride, v_field_stride, queries, rows, width, first_row, capacity,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """SearchKernels.screen for a tile; tiles of one block of rows run side by side."""
    across = tl.cdiv(queries, BLOCK_M)
    i = tl.program_id(0) % across * BLOCK_M + tl.arange(0, BLOCK_M)
    j = tl.program_id(0) // across * BLOCK_N + tl.arange(0, BLOCK_N)
    query_mask, row_mask = i < queries, j < rows
    k = tl.arange(0, BLOCK_K)
    q_pointers = q + tl.minimum(i, queries - 1).to(tl.int64)[:, None] * width + k[None, :]
    v_pointers = v + tl.minimum(j, rows - 1).to(tl.int64)[None, :] * width + k[:, None]
    products = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for _ in range(0, width, BLOCK_K):
        products = tl.dot(tl.load(q_pointers), tl.load(v_pointers), products)
        q_pointers += BLOCK_K
        v_pointers += BLOCK_K
    near = tl.load(v_numbers + _NEAR * v_field_stride + j, mask=row_mask, other=_INF)
    twice = 2 * tl.load(q_numbers + _SCALE * q_field_stride + i, mask=query_mask, other=0.0)
    reach = tl.load(aims + _REACH * q_field_stride + i, mask=query_mask, other=0.0)
    floor = tl.load(aims + _FLOOR * q_field_stride + i, mask=query_mask, other=_INF)
    if BLOCK_N <= _ROWS:  # one scale and one level
        tile = tl.program_id(0) // across * BLOCK_N
        scale = tl.load(v_numbers + _SCALE * v_field_stride + tile)
        level = tl.load(v_numbers + _LEVEL * v_field_stride + tile)
        closeness = products * (twice * scale)[:, None] - near[None, :]
        needed = (floor - reach * level)[:, None]
    else:
        scale = tl.load(v_numbers + _SCALE * v_field_stride + j, mask=row_mask, other=0.0)
        level = tl.load(v_numbers + _LEVEL * v_field_stride + j, mask=row_mask, other=0.0)
        closeness = products * (twice[:, None] * scale[None, :]) - near[None, :]
        needed = floor[:, None] - reach[:, None] * level[None, :]
    # Padding's near and floor are infinite, and no product is.
    keep = (closeness < needed) == 0
    found = tl.sum(keep.to(tl.int32), 1)
    if _most(found) > 0:
        first = tl.atomic_add(counts + i, found, mask=query_mask & (found > 0), sem="relaxed")
        rounds = tl.where(first < capacity, tl.minimum(found, capacity - first), 0)
        # One row of each query at a time: few rounds, and no address an element.
        slots = i.to(tl.int64) * capacity + first
        columns = tl.where(keep, j[None, :], 0x7FFFFFFF)
        last = tl.min(columns, 1)
        for number in range(0, _most(rounds)):
            chosen = columns == last[:, None]
            mask = number < rounds
            tl.store(lists + slots + number, first_row + last, mask=mask)
            tl.store(values + slots + number, tl.sum(tl.where(chosen, products, 0.0), 1), mask=mask)
            columns = tl.where(chosen, 0x7FFFFFFF, columns)
            last = tl.min(columns, 1)
