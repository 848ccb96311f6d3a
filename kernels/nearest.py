"""The steps of the nearest search in Triton; robustft.backends.search.screening says what and why.

halve_rows packs rows in float64, a few rows a program. aim_rows, resolve_rows and select_rows take
a query (in the interpreter several) a program and find order statistics by bisection on the bits of
non-negative floats, which sort as the floats do: 31 counts over values that lie in the first cache.
screen_tiles multiplies tiles on the tensor cores, tests in registers, and where a tile has a row to
list takes one atomic add a query and tile for its slots. exact_rows streams the rows kept.

All sizes are run-time arguments that are not specialised: other Q, N or k compile nothing anew.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from robustft.backends import simulation
from robustft.backends.search import screening
from robustft.backends.search.screening import Lists, Packed
from robustft.kernels.configs import bucket, config

FORMAT = screening.FORMAT
STREAMS = True  # a bank on the host serves queries on a GPU

_TINY = tl.constexpr(screening.TINY)
_LARGEST = tl.constexpr(screening.LARGEST)
_LOWEST = tl.constexpr(screening.LOWEST)
_WIDER = tl.constexpr(screening.WIDER)
_SCALE = tl.constexpr(screening.SCALE)
_NEAR = tl.constexpr(screening.NEAR)
_RESIDUAL = tl.constexpr(screening.RESIDUAL)
_NORM = tl.constexpr(screening.NORM)
_SQUARE = tl.constexpr(screening.SQUARE)
_RADIUS = tl.constexpr(screening.RADIUS)
_REACH = tl.constexpr(screening.REACH)
_FLOOR = tl.constexpr(screening.FLOOR)
_INFINITE = tl.constexpr(0x7F800000)  # bits of inf
_INF = tl.constexpr(float("inf"))


@triton.jit
def _centred(x, stride, mean, i, k, rows, dim):
    """x − mean in float64 for rows i and columns k, 0 beyond either end."""
    inside = (i < rows)[:, None] & (k < dim)[None, :]
    a = tl.load(x + i.to(tl.int64)[:, None] * stride + k[None, :], mask=inside, other=0.0)
    m = tl.load(mean + k, mask=k < dim, other=0.0)
    return tl.where(inside, a.to(tl.float64) - m.to(tl.float64)[None, :], 0.0)


@triton.jit(do_not_specialize=["rows"])
def halve_rows(
    x, stride, mean, halves, numbers, line, rows, dim, width, slack,
    R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Steps.halve for R rows."""
    i = tl.program_id(0) * R + tl.arange(0, R)
    k = tl.arange(0, BLOCK_K)
    largest = tl.zeros((R,), tl.float32)
    square = tl.zeros((R,), tl.float64)
    for start in range(0, dim, BLOCK_K):
        c = _centred(x, stride, mean, i, start + k, rows, dim)
        largest = tl.maximum(largest, tl.max(tl.abs(c).to(tl.float32), 1))
        square += tl.sum(c * c, 1)
    trusted = square <= _LARGEST
    # The power of two above: the exponent's field and one, in a float of its own.
    largest = tl.where(trusted, tl.maximum(largest, 2.0**-61), 1.0)
    field = (largest.to(tl.int32, bitcast=True) >> 23) + 1
    scale = (field << 23).to(tl.float32, bitcast=True).to(tl.float64)
    inverse = ((254 - field) << 23).to(tl.float32, bitcast=True).to(tl.float64)
    norm = tl.zeros((R,), tl.float64)
    rest = tl.zeros((R,), tl.float64)
    for start in range(0, width, BLOCK_K):
        c = _centred(x, stride, mean, i, start + k, rows, dim)
        c = tl.where(trusted[:, None], c, 0.0)
        h = (c * inverse[:, None]).to(tl.float16)
        at = halves + i.to(tl.int64)[:, None] * width + (start + k)[None, :]
        tl.store(at, h, mask=((start + k) < width)[None, :])
        rounded = h.to(tl.float64) * scale[:, None]
        norm += tl.sum(rounded * rounded, 1)
        rest += tl.sum((c - rounded) * (c - rounded), 1)
    residual = tl.sqrt(rest) * (1 + _WIDER) + _TINY
    near = norm * (1 - slack) - residual * residual * (1 + slack) - _TINY
    near = tl.where(trusted, near, _LOWEST)
    norm = tl.where(trusted, norm, square * 0 + _INF)
    here = i < rows
    tl.store(numbers + _SCALE * line + i, tl.where(here & trusted, scale, 0.0))
    tl.store(numbers + _NEAR * line + i, tl.where(here, near, _INF))
    tl.store(numbers + _RESIDUAL * line + i, tl.where(here & trusted, residual, 0.0))
    tl.store(numbers + _NORM * line + i, tl.where(here, norm, 0.0))
    tl.store(numbers + _SQUARE * line + i, tl.where(here, square, 0.0))


@triton.jit
def _bounds(product, q, q_line, i, v, v_line, row, mask, slack):
    """Lower and upper bounds of the distances of queries i [R] and rows [R, BLOCK]."""
    q_norm, v_norm = tl.load(q + _NORM * q_line + i), tl.load(v + _NORM * v_line + row, mask=mask)
    norms = q_norm[:, None] + v_norm
    scale = tl.load(v + _SCALE * v_line + row, mask=mask)
    s = norms - 2 * product * tl.load(q + _SCALE * q_line + i)[:, None] * scale
    e = slack * norms + _TINY
    rho = tl.load(q + _RESIDUAL * q_line + i)[:, None]
    rho += tl.load(v + _RESIDUAL * v_line + row, mask=mask)
    # Written so that a NaN gives 0 and inf.
    low = tl.sqrt(tl.where(s - e > 0, s - e, 0.0)) * (1 - _WIDER) - rho * (1 + _WIDER)
    high = (tl.sqrt(tl.where(s + e > 0, s + e, 0.0)) + rho) * (1 + _WIDER)
    return tl.where(low > 0, low, 0.0), tl.where(v_norm < _INF, high, _INF)


@triton.jit
def _kth(values, counts, most, k, R: tl.constexpr, BLOCK: tl.constexpr):
    """The k-th smallest (k [R]) of the first `counts` floats ≥ 0 at each of R addresses, or inf.

    most: the largest of the counts.
    """
    j = tl.arange(0, BLOCK)
    found = tl.zeros((R,), tl.int32)
    for bit in range(31):
        # The answer is at least found + 2^(30 − bit) if fewer than k values are below that.
        trial = found + (1 << (30 - bit))
        below = tl.zeros((R,), tl.int32)
        for start in range(0, most, BLOCK):
            inside = (start + j)[None, :] < counts[:, None]
            x = tl.load(values[:, None] + start + j[None, :], mask=inside, other=0.0)
            below += tl.sum(
                (inside & (x.to(tl.int32, bitcast=True) < trial[:, None])).to(tl.int32), 1
            )
        found = tl.where(below < k, trial, found)
    return tl.minimum(found, _INFINITE).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["queries", "rank"])
def aim_rows(
    products, q, q_line, sample, sample_line, aims, queries, n, rank, slack,
    R: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Steps.aim for R queries; products [queries, n] become upper bounds."""
    i = tl.program_id(0) * R + tl.arange(0, R)
    here = i < queries
    j = tl.arange(0, BLOCK)
    values = products + tl.minimum(i, queries - 1).to(tl.int64) * n
    for start in range(0, n, BLOCK):
        row = tl.broadcast_to((start + j)[None, :], (R, BLOCK))
        mask = (row < n) & here[:, None]
        product = tl.load(values[:, None] + row, mask=mask, other=0.0)
        _, high = _bounds(product, q, q_line, i, sample, sample_line, row, mask, slack)
        tl.store(values[:, None] + row, high, mask=mask)
    tl.debug_barrier()
    radius = _kth(values, tl.where(here, n, 0), n, rank + tl.zeros((R,), tl.int32), R, BLOCK)
    norm = tl.load(q + _NORM * q_line + i)
    t = radius * (1 + _WIDER) + tl.load(q + _RESIDUAL * q_line + i)
    floor = norm * (1 - slack) - t * t * (1 + slack) - _TINY
    on = here & (radius < _INF) & (norm < _INF)
    tl.store(aims + _RADIUS * q_line + i, tl.where(on, radius, 0.0))
    tl.store(aims + _REACH * q_line + i, tl.where(on, 2 * t, 0.0))
    tl.store(aims + _FLOOR * q_line + i, tl.where(on, floor, _INF))


@triton.jit
def _most(x):
    """The largest of a vector. Triton 3.6 does not compile a reduction of a vector that comes from
    products for sm_100, so it is one of a matrix."""
    return tl.max(x[:, None], 0).item()


@triton.jit(do_not_specialize=["queries", "rows", "first_row"])
def screen_tiles(
    q, q_numbers, q_line, aims, v, v_numbers, v_line, lists, values, counts,
    queries, rows, width, first_row, capacity,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Steps.screen for a tile; tiles of one block of rows run side by side."""
    across = tl.cdiv(queries, BLOCK_M)
    i = tl.program_id(0) % across * BLOCK_M + tl.arange(0, BLOCK_M)
    j = tl.program_id(0) // across * BLOCK_N + tl.arange(0, BLOCK_N)
    here, there = i < queries, j < rows
    k = tl.arange(0, BLOCK_K)
    q_at = q + tl.minimum(i, queries - 1).to(tl.int64)[:, None] * width + k[None, :]
    v_at = v + tl.minimum(j, rows - 1).to(tl.int64)[None, :] * width + k[:, None]
    products = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for _ in range(0, width, BLOCK_K):
        products = tl.dot(tl.load(q_at), tl.load(v_at), products)
        q_at += BLOCK_K
        v_at += BLOCK_K
    scale = tl.load(v_numbers + _SCALE * v_line + j, mask=there, other=0.0)
    near = tl.load(v_numbers + _NEAR * v_line + j, mask=there, other=_INF)
    residual = tl.load(v_numbers + _RESIDUAL * v_line + j, mask=there, other=0.0)
    twice = 2 * tl.load(q_numbers + _SCALE * q_line + i, mask=here, other=0.0)
    reach = tl.load(aims + _REACH * q_line + i, mask=here, other=0.0)
    floor = tl.load(aims + _FLOOR * q_line + i, mask=here, other=_INF)
    closeness = products * twice[:, None] * scale[None, :]
    closeness += reach[:, None] * residual[None, :] - near[None, :]
    keep = ((closeness < floor[:, None]) == 0) & here[:, None] & there[None, :]
    found = tl.sum(keep.to(tl.int32), 1)
    if _most(found) > 0:
        first = tl.atomic_add(counts + i, found, mask=here & (found > 0), sem="relaxed")
        rounds = tl.where(first < capacity, tl.minimum(found, capacity - first), 0)
        # One row of each query at a time: few rounds, and no address an element.
        at = i.to(tl.int64) * capacity + first
        columns = tl.where(keep, j[None, :], 0x7FFFFFFF)
        last = tl.min(columns, 1)
        for number in range(0, _most(rounds)):
            one = columns == last[:, None]
            mask = number < rounds
            tl.store(lists + at + number, first_row + last, mask=mask)
            tl.store(values + at + number, tl.sum(tl.where(one, products, 0.0), 1), mask=mask)
            columns = tl.where(one, 0x7FFFFFFF, columns)
            last = tl.min(columns, 1)


@triton.jit(do_not_specialize=["queries", "k"])
def resolve_rows(
    q, q_line, v, v_line, lists, values, upper, counts, kept, ranks, queries, k, capacity, slack,
    EVERY: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Steps.resolve for R queries; values become lower bounds."""
    i = tl.program_id(0) * R + tl.arange(0, R)
    here = i < queries
    count = tl.minimum(tl.load(counts + i, mask=here, other=0), capacity)
    most = tl.max(count, 0)
    j = tl.arange(0, BLOCK)
    base = tl.minimum(i, queries - 1).to(tl.int64) * capacity
    for start in range(0, most, BLOCK):
        mask = (start + j)[None, :] < count[:, None]
        at = base[:, None] + start + j[None, :]
        row = tl.load(lists + at, mask=mask, other=0)
        product = tl.load(values + at, mask=mask, other=0.0)
        low, high = _bounds(product, q, q_line, i, v, v_line, row, mask, slack)
        tl.store(values + at, low, mask=mask)
        tl.store(upper + at, high, mask=mask)
    tl.debug_barrier()
    rank = k + tl.zeros((R,), tl.int32)
    highest = _kth(upper + base, count, most, rank, R, BLOCK)
    lowest = highest * 0
    if not EVERY:
        lowest = _kth(values + base, count, most, rank, R, BLOCK)
    below, stored = tl.zeros((R,), tl.int32), tl.zeros((R,), tl.int32)
    for start in range(0, most, BLOCK):
        mask = (start + j)[None, :] < count[:, None]
        at = base[:, None] + start + j[None, :]
        row = tl.load(lists + at, mask=mask, other=0)
        keep = mask & (tl.load(values + at, mask=mask, other=0.0) <= highest[:, None])
        if not EVERY:
            nearer = mask & (tl.load(upper + at, mask=mask, other=0.0) < lowest[:, None])
            below += tl.sum(nearer.to(tl.int32), 1)
            keep = keep & (nearer == 0)
        one = keep.to(tl.int32)
        slot = stored[:, None] + tl.cumsum(one, 1) - one
        tl.debug_barrier()  # rows are read before others take their slots
        tl.store(lists + base[:, None] + slot, row, mask=keep)
        stored += tl.sum(one, 1)
    tl.store(kept + i, stored, mask=here)
    tl.store(ranks + i, k - below, mask=here)


@triton.jit(do_not_specialize=["first_row", "rows", "splits"])
def exact_rows(
    q, q_stride, v, v_stride, lists, values, kept, first_row, rows, dim, capacity, splits,
    BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Steps.exact for one query, or a share of its rows."""
    i = (tl.program_id(0) // splits).to(tl.int64)
    count = tl.load(kept + i)
    k = tl.arange(0, BLOCK_K)
    for start in range(tl.program_id(0) % splits * BLOCK_C, count, splits * BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        row = tl.load(lists + i * capacity + c, mask=c < count, other=-1) - first_row
        mine = (c < count) & (row >= 0) & (row < rows)
        at = v + row.to(tl.int64)[:, None] * v_stride + k[None, :]
        total = tl.zeros((BLOCK_C,), tl.float64)
        for d in range(0, dim, BLOCK_K):
            mask = mine[:, None] & (k < dim - d)[None, :]
            a = tl.load(q + i * q_stride + d + k, mask=k < dim - d, other=0.0).to(tl.float64)
            b = tl.load(at + d, mask=mask, other=0.0).to(tl.float64)
            apart = tl.where(mask, a[None, :] - b, 0.0)
            total += tl.sum(apart * apart, 1)
        tl.store(values + i * capacity + c, total.to(tl.float32), mask=mine)


@triton.jit(do_not_specialize=["queries"])
def select_rows(
    values, counts, kept, ranks, q, q_line, aims, kth, safe, queries, capacity,
    R: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Steps.select for R queries."""
    i = tl.program_id(0) * R + tl.arange(0, R)
    here = i < queries
    count = tl.load(kept + i, mask=here, other=0)
    rank = tl.load(ranks + i, mask=here, other=1)
    base = tl.minimum(i, queries - 1).to(tl.int64) * capacity
    found = _kth(values + base, count, tl.max(count, 0), rank, R, BLOCK)
    radius = tl.load(aims + _RADIUS * q_line + i)
    norm = tl.load(q + _NORM * q_line + i)
    missing = norm != norm
    certain = found <= radius * radius * (1 - 4 * _WIDER)
    certain = certain & (tl.load(counts + i, mask=here, other=0) <= capacity)
    tl.store(kth + i, tl.where(missing, float("nan"), found), mask=here)
    tl.store(safe + i, certain | missing, mask=here)


class _Triton(screening.Steps):
    """The launches. R queries a program: 1, and 32 in the interpreter, where programs are slow."""

    def halve(self, x: Tensor, mean: Tensor, into: Packed) -> None:
        rows, width = into.halves.shape
        r = 32 if x.device.type == "cpu" else 4
        halve_rows[(rows // r,)](
            x, x.stride(0), mean, into.halves, into.numbers, into.numbers.stride(0), len(x),
            x.shape[1], width, screening.slack_of(x.shape[1]), R=r, BLOCK_K=128, num_warps=4,
        )  # fmt: skip

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
        aim_rows[(len(queries.halves) // r,)](
            products, queries.numbers, queries.numbers.stride(0), sample, sample.stride(0), aims,
            count, n, rank, slack, R=r, BLOCK=block, num_warps=max(1, block // 256),
        )  # fmt: skip

    def screen(
        self, queries: Packed, aims: Tensor, chunk: Packed, first_row: int, lists: Lists
    ) -> None:
        count, capacity = lists.rows.shape
        rows, width = chunk.halves.shape
        options = config("nearest", chunk.halves.device, torch.float16, width)
        tiles = triton.cdiv(count, options["BLOCK_M"]) * triton.cdiv(rows, options["BLOCK_N"])
        screen_tiles[(tiles,)](
            queries.halves, queries.numbers, queries.numbers.stride(0), aims, chunk.halves,
            chunk.numbers, chunk.numbers.stride(0), lists.rows, lists.values, lists.counts,
            count, rows, width, first_row, capacity, **options,
        )  # fmt: skip

    def resolve(
        self, queries: Tensor, bank: Tensor, k: int, slack: float, every: bool, lists: Lists
    ) -> None:
        count, capacity = lists.rows.shape
        block, r = min(1024, bucket(capacity)), _together(bank)
        resolve_rows[(triton.cdiv(count, r),)](
            queries, queries.stride(0), bank, bank.stride(0), lists.rows, lists.values,
            torch.empty_like(lists.values), lists.counts, lists.kept, lists.ranks, count, k,
            capacity, slack, EVERY=every, R=r, BLOCK=block, num_warps=max(1, block // 256),
        )  # fmt: skip

    def exact(self, queries: Tensor, rows: Tensor, first_row: int, lists: Lists) -> None:
        count, capacity = lists.rows.shape
        chunk, splits = (64, 1) if rows.device.type == "cpu" else (8, _splits(rows.device, count))
        exact_rows[(count * splits,)](
            queries, queries.stride(0), rows, rows.stride(0), lists.rows, lists.values, lists.kept,
            first_row, len(rows), rows.shape[1], capacity, splits,
            BLOCK_C=chunk, BLOCK_K=min(128, bucket(rows.shape[1])), num_warps=4,
        )  # fmt: skip

    def select(
        self, queries: Tensor, aims: Tensor, lists: Lists, kth: Tensor, safe: Tensor
    ) -> None:
        count, capacity = lists.rows.shape
        r = _together(queries)
        select_rows[(triton.cdiv(count, r),)](
            lists.values, lists.counts, lists.kept, lists.ranks, queries, queries.stride(0), aims,
            kth, safe, count, capacity, R=r, BLOCK=256, num_warps=1,
        )  # fmt: skip


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
