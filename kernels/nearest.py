"""The steps of the nearest search in Triton; robustft.backends.search.screening says what and why.

round_rows packs rows in float64, a few rows a program. aim_rows, resolve_rows and select_rows take
a query (in the interpreter several) a program and find order statistics by bisection on the bits of
non-negative floats, which sort as the floats do: 31 counts over values that lie in the first cache.
screen_tiles multiplies tiles on the tensor cores, tests in registers, and where a tile has a row to
list takes one atomic add a query and tile for its slots. exact_rows streams the rows kept.

All sizes are run-time arguments that are not specialised: other Q, N or k compile nothing anew.

Pointers: q, v (or halves) [n, width] float16; q_numbers, v_numbers (q, v where a kernel reads no
halves) [6, n] and aims [3, n] float32, whose fields lie q_field_stride or v_field_stride apart;
lists, values, upper [queries, capacity]; counts, kept, ranks [queries] int32. i numbers queries, j
or row bank rows; query_mask and row_mask say which exist, slots are offsets into the lists.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from robustft.backends import simulation
from robustft.backends.search import screening
from robustft.backends.search.screening import Lists, Packed
from robustft.kernels.configs import bucket, config
from robustft.kernels.launch import Launch, planned

FORMAT = screening.FORMAT
STREAMS = True  # a bank on the host serves queries on a GPU

_TINY = tl.constexpr(screening.TINY)
_LARGEST = tl.constexpr(screening.LARGEST)
_WIDER = tl.constexpr(screening.WIDER)
_SHARE = tl.constexpr(screening.SHARE)
_ROWS = tl.constexpr(screening.ROWS)
_SCALE = tl.constexpr(screening.SCALE)
_RESIDUAL = tl.constexpr(screening.RESIDUAL)
_NORM = tl.constexpr(screening.NORM)
_SQUARE = tl.constexpr(screening.SQUARE)
_NEAR = tl.constexpr(screening.NEAR)
_LEVEL = tl.constexpr(screening.LEVEL)
_RADIUS = tl.constexpr(screening.RADIUS)
_REACH = tl.constexpr(screening.REACH)
_FLOOR = tl.constexpr(screening.FLOOR)
_INFINITE = tl.constexpr(0x7F800000)  # bits of inf
_INF = tl.constexpr(float("inf"))


@triton.jit
def _centred(x, stride, mean, i, k, rows, dim):
    """x − mean in float64 for rows i and columns k, 0 beyond either end."""
    mask = (i < rows)[:, None] & (k < dim)[None, :]
    a = tl.load(x + i.to(tl.int64)[:, None] * stride + k[None, :], mask=mask, other=0.0)
    m = tl.load(mean + k, mask=k < dim, other=0.0)
    return tl.where(mask, a.to(tl.float64) - m.to(tl.float64)[None, :], 0.0)


@triton.jit(do_not_specialize=["rows"])
def round_rows(
    x, mean, halves, numbers, stride, field_stride, rows, dim, width,
    SCALED: tl.constexpr, R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """SearchKernels.round_rows for R rows."""
    i = tl.program_id(0) * R + tl.arange(0, R)
    k = tl.arange(0, BLOCK_K)
    largest = tl.zeros((R,), tl.float32)
    square = tl.zeros((R,), tl.float64)
    for start in range(0, dim, BLOCK_K):
        c = _centred(x, stride, mean, i, start + k, rows, dim)
        largest = tl.maximum(largest, tl.max(tl.abs(c).to(tl.float32), 1))
        square += tl.sum(c * c, 1)
    trusted = square <= _LARGEST
    # The power of two above: the exponent's field_stride and one, in a float of its own.
    largest = tl.where(trusted, tl.maximum(largest, 2.0**-61), 1.0)
    exponent = (largest.to(tl.int32, bitcast=True) >> 23) + 1
    if SCALED:
        scale = tl.load(numbers + _SCALE * field_stride + i)
        exponent = scale.to(tl.int32, bitcast=True) >> 23
    scale = (exponent << 23).to(tl.float32, bitcast=True).to(tl.float64)
    inverse = ((254 - exponent) << 23).to(tl.float32, bitcast=True).to(tl.float64)
    norm = tl.zeros((R,), tl.float64)
    residual_square = tl.zeros((R,), tl.float64)
    for start in range(0, width, BLOCK_K):
        c = _centred(x, stride, mean, i, start + k, rows, dim)
        c = tl.where(trusted[:, None], c, 0.0)
        h = (c * inverse[:, None]).to(tl.float16)
        pointers = halves + i.to(tl.int64)[:, None] * width + (start + k)[None, :]
        tl.store(pointers, h, mask=((start + k) < width)[None, :])
        rounded = h.to(tl.float64) * scale[:, None]
        norm += tl.sum(rounded * rounded, 1)
        residual_square += tl.sum((c - rounded) * (c - rounded), 1)
    residual = tl.sqrt(residual_square) * (1 + _WIDER) + _TINY
    norm = tl.where(trusted, norm, square * 0 + _INF)
    row_mask = i < rows
    if not SCALED:
        tl.store(numbers + _SCALE * field_stride + i, tl.where(row_mask & trusted, scale, 0.0))
    tl.store(numbers + _RESIDUAL * field_stride + i, tl.where(row_mask & trusted, residual, 0.0))
    tl.store(numbers + _NORM * field_stride + i, tl.where(row_mask, norm, 0.0))
    tl.store(numbers + _SQUARE * field_stride + i, tl.where(row_mask, square, 0.0))


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


# The launches, planned once for the integers that they take. R queries a program: 1, and 32 in the
# interpreter, where programs are slow.


@planned
def _plan(
    function: Any, device: torch.device, programs: int, *numbers: int, **constants: Any
) -> Launch:
    """device: a part of the key, for a kernel is compiled for one. All tensors are float32, or of
    the one dtype that Packed and Lists say."""
    return Launch(function, (programs,), *numbers, **constants)


class _Triton(screening.SearchKernels):
    def round_rows(self, x: Tensor, mean: Tensor, into: Packed, scaled: bool = False) -> None:
        rows, width = into.halves.shape
        r = 32 if x.device.type == "cpu" else 4
        launch = _plan(
            round_rows, x.device, rows // r, x.stride(0), into.numbers.stride(0), *x.shape, width,
            SCALED=scaled, R=r, BLOCK_K=128, num_warps=4,
        )  # fmt: skip
        launch(x, mean, *into)

    def aim(
        self,
        products: Tensor,
        queries: Packed,
        sample: Tensor,
        rank: int,
        slack: float,
        aims: Tensor,
    ) -> None:
        count, n = products.shape
        block, r = min(4096, bucket(n)), _together(products)
        launch = _plan(
            aim_rows, products.device, len(queries.halves) // r, queries.numbers.stride(0),
            sample.stride(0), count, n, rank, R=r, BLOCK=block, num_warps=max(1, block // 256),
        )  # fmt: skip
        launch(products, queries.numbers, sample, aims, floats=(slack,))

    def screen(
        self, queries: Packed, aims: Tensor, chunk: Packed, first_row: int, lists: Lists
    ) -> None:
        count, capacity = lists.rows.shape
        rows, width = chunk.halves.shape
        options = config("nearest", chunk.halves.device, torch.float16, width)
        tiles = triton.cdiv(count, options["BLOCK_M"]) * triton.cdiv(rows, options["BLOCK_N"])
        launch = _plan(
            screen_tiles, chunk.halves.device, tiles, queries.numbers.stride(0),
            chunk.numbers.stride(0), count, rows, width, first_row, capacity, **options,
        )  # fmt: skip
        launch(*queries, aims, *chunk, *lists[:3])

    def resolve(
        self, queries: Tensor, bank: Tensor, k: int, slack: float, every: bool, lists: Lists
    ) -> None:
        count, capacity = lists.rows.shape
        block, r = min(1024, bucket(capacity)), _together(bank)
        launch = _plan(
            resolve_rows, bank.device, triton.cdiv(count, r), queries.stride(0), bank.stride(0),
            count, k, capacity, EVERY=every, R=r, BLOCK=block, num_warps=max(1, block // 256),
        )  # fmt: skip
        upper = torch.empty_like(lists.values)
        launch(queries, bank, lists.rows, lists.values, upper, *lists[2:], floats=(slack,))

    def exact(self, queries: Tensor, rows: Tensor, first_row: int, lists: Lists) -> None:
        count, capacity = lists.rows.shape
        chunk, splits = (64, 1) if rows.device.type == "cpu" else (8, _splits(rows.device, count))
        launch = _plan(
            exact_rows, rows.device, count * splits, queries.stride(0), rows.stride(0), first_row,
            *rows.shape, capacity, splits,
            BLOCK_C=chunk, BLOCK_K=min(128, bucket(rows.shape[1])), num_warps=4,
        )  # fmt: skip
        launch(queries, rows, lists.rows, lists.values, lists.kept)

    def select(
        self, queries: Tensor, aims: Tensor, lists: Lists, kth: Tensor, safe: Tensor
    ) -> None:
        count, capacity = lists.rows.shape
        r = _together(queries)
        launch = _plan(
            select_rows, queries.device, triton.cdiv(count, r), queries.stride(0), count, capacity,
            R=r, BLOCK=256, num_warps=1,
        )  # fmt: skip
        launch(lists.values, *lists[2:], queries, aims, kth, safe)


_STEPS = _Triton()


layout = screening.layout


def pack(rows: Tensor) -> list[Tensor]:
    """[mean [D], halves, numbers] on the rows' device; rows on the host are packed by the GPU."""
    device = rows.device
    if device.type == "cpu" and not simulation.interpreting():
        device = torch.device("cuda")
    return screening.pack(rows, _STEPS, device)


def kth_distance(
    queries: Tensor, rows: Tensor, packed: list[Tensor], k: int, squared: bool
) -> Tensor:
    """[Q]: the distance from each query to its k-th nearest row."""
    return screening.kth_distance(queries, rows, packed, k, squared, _STEPS)


def knn(
    queries: Tensor, rows: Tensor, packed: list[Tensor], k: int, squared: bool
) -> tuple[Tensor, Tensor]:
    """([Q, k] distances ascending, [Q, k] int64 indices)."""
    return screening.knn(queries, rows, packed, k, squared, _STEPS)


def _together(x: Tensor) -> int:
    return 32 if x.device.type == "cpu" else 1


def _splits(device: torch.device, queries: int) -> int:
    """Programs a query, so that few queries fill the card."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, 4 * processors // queries)
