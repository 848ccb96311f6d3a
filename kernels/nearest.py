"""The k nearest bank rows on a GPU (VRF, arXiv 2411.06966): exact, by a float16 product.

    d²(q, v) = Σ (q − v)²

A bank is packed once: rows less their mean, c = v − μ, rounded to ṽ = s·h with float16 h and a
power of two s (so that no row is too long or too short for float16), |ṽ|², and ρ_v ≥ |c − ṽ|.
Queries likewise. By the triangle inequality

    |q − v| ≥ |q̃ − ṽ| − ρ_q − ρ_v

so a row can be as near as a threshold τ only if |q̃ − ṽ|² ≤ (√τ + ρ_q + ρ_v)². A search takes, for a
block of queries,

1. a sample: screened distances to every so-manyth row, of which the j-th smallest makes τ, such
   that somewhat more than k of all rows are nearer;
2. the sweep: products in tiles on the tensor cores; rows that pass the test above are appended to
   the query's list, slots from an integer counter;
3. Σ(q − v)² of the listed rows, in float64, rounded once;
4. the k-th smallest of them, by bisection on the bits of the floats.

τ is a guess, the test is not: if k of the listed rows are within τ, no other row can be among the
k nearest. Queries for which that fails (a poor guess, or more near rows than a list holds) are
searched again by the reference. The order of a list does not matter, so results are the same each
time.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from robustft.kernels.configs import bucket, config
from robustft.reference import nearest as reference

FORMAT = "triton-fp16-1"

_QUERIES = 8192  # of a block, at most
_LISTS = 1 << 29  # bytes of a block's lists
_LEAST_SAMPLE, _LARGEST_SAMPLE = 1024, 16384  # rows; the largest is held in registers
_CHUNK = 32  # listed rows of a program of the third step
_LARGEST = 1e37  # of a screened square
_TINY = 2.0**-120  # more than underflow takes from a sum


@triton.jit(do_not_specialize=["queries", "rows"])
def screen_tiles(
    q, q_scale, q_reach, q_floor, v, v_scale, v_near, v_residual, lists, counts,
    queries, rows, dim, capacity,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    """Append the rows of a tile that may be near to the lists of its queries.

    Keep where 2·s_q·s_v·<h_q, h_v> + 2·(√τ + ρ_q)·ρ_v − near_v ≥ floor_q, NaN too.
    """
    i = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    j = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    here, there = i < queries, j < rows
    k = tl.arange(0, BLOCK_K)
    q_at = q + tl.minimum(i, queries - 1).to(tl.int64)[:, None] * dim + k[None, :]
    v_at = v + tl.minimum(j, rows - 1).to(tl.int64)[None, :] * dim + k[:, None]
    products = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, dim, BLOCK_K):
        if EVEN_K:
            a, b = tl.load(q_at), tl.load(v_at)
        else:
            a = tl.load(q_at, mask=(k < dim - start)[None, :], other=0.0)
            b = tl.load(v_at, mask=(k < dim - start)[:, None], other=0.0)
        products = tl.dot(a, b, products)
        q_at += BLOCK_K
        v_at += BLOCK_K
    scale = tl.load(v_scale + j, mask=there, other=0.0)
    near = tl.load(v_near + j, mask=there, other=float("inf"))
    residual = tl.load(v_residual + j, mask=there, other=0.0)
    closeness = products * tl.load(q_scale + i, mask=here, other=0.0)[:, None] * scale[None, :]
    closeness += tl.load(q_reach + i, mask=here, other=0.0)[:, None] * residual[None, :]
    closeness -= near[None, :]
    below = closeness < tl.load(q_floor + i, mask=here, other=float("inf"))[:, None]
    keep = (below == 0) & here[:, None] & there[None, :]
    kept = keep.to(tl.int32)
    found = tl.sum(kept, 1)
    if tl.max(found, 0) > 0:
        first = tl.atomic_add(counts + i, found, mask=here & (found > 0), sem="relaxed")
        slot = first[:, None] + tl.cumsum(kept, 1) - kept
        where = i.to(tl.int64)[:, None] * capacity + slot
        row = tl.broadcast_to(j[None, :], (BLOCK_M, BLOCK_N))
        tl.store(lists + where, row, mask=keep & (slot < capacity))


@triton.jit
def exact_distances(
    q, q_stride, v, v_stride, lists, counts, distances, dim, capacity,
    BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Σ(q − v)² of one query's list, in float64, rounded once; Inf beyond its end."""
    i = tl.program_id(0).to(tl.int64)
    count = tl.minimum(tl.load(counts + i), capacity)
    k = tl.arange(0, BLOCK_K)
    start = tl.program_id(1) * BLOCK_C
    c = start + tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_C,), tl.float64)
    if start < count:
        row = tl.load(lists + i * capacity + c, mask=c < count, other=0).to(tl.int64)
        for d in range(0, dim, BLOCK_K):
            inside = k < dim - d
            a = tl.load(q + i * q_stride + d + k, mask=inside, other=0.0).to(tl.float64)
            at = v + row[:, None] * v_stride + (d + k)[None, :]
            mask = (c < count)[:, None] & inside[None, :]
            b = tl.load(at, mask=mask, other=0.0).to(tl.float64)
            apart = tl.where(mask, a[None, :] - b, 0.0)
            total += tl.sum(apart * apart, 1)
    result = tl.where(c < count, total, float("inf")).to(tl.float32)
    tl.store(distances + i * capacity + c, result, mask=c < capacity)


@triton.jit
def select_kth(values, stride, out, n, k, BLOCK: tl.constexpr):
    """The k-th smallest of n non-negative floats a row: their bits sort as they do."""
    i = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, BLOCK)
    x = tl.load(values + i * stride + j, mask=j < n, other=float("inf"))
    bits = tl.where(j < n, x.to(tl.int32, bitcast=True), 0x7FFFFFFF)
    found = tl.zeros((1,), tl.int32)
    for bit in range(31):
        step = 1 << (30 - bit)
        # The answer is at least found + step if fewer than k values are below it.
        smaller = tl.sum((bits < found + step).to(tl.int32), 0)
        found = tl.where(smaller < k, found + step, found)
    tl.store(out + i + tl.zeros((1,), tl.int32), found.to(tl.float32, bitcast=True))


def pack(rows: Tensor) -> list[Tensor]:
    """[mean [D], halves [N, D] float16, numbers [4, N] float32: scale, near, residual, |ṽ|²]."""
    mean = rows.mean(0, dtype=torch.float64).to(rows.dtype)
    halves = rows.new_empty(rows.shape, dtype=torch.float16)
    numbers = rows.new_empty((4, len(rows)))
    slack = _slack(rows)
    for first in range(0, len(rows), 16384):
        part = slice(first, first + 16384)
        halves[part], scale, norm, residual = _halve(rows[part], mean)
        near = norm * (1 - slack) - residual.square() * (1 + slack) - _TINY
        numbers[:, part] = torch.stack([scale, near, residual, norm])
    # Beyond float32's range nothing is known of a distance: such a row is always listed.
    known = numbers.isfinite().all(0)
    numbers[1].masked_fill_(~known, -torch.inf)
    numbers[2].masked_fill_(~known, 0)
    return [mean, halves, numbers]


def kth_distance(
    queries: Tensor, rows: Tensor, packed: list[Tensor], k: int, squared: bool
) -> Tensor:
    """[Q]: the distance from each query to its k-th nearest row."""
    plan = _plan(len(rows), k)
    if plan is None:
        return reference.kth_distance(queries, rows, [], k, squared)
    packed = packed or pack(rows)
    kth, safe = [], []
    for block in queries.split(plan.queries):
        found = _search(block, rows, packed, k, plan)
        kth.append(found.kth)
        safe.append(found.safe)
    distances = torch.cat(kth)
    again = (~torch.cat(safe)).nonzero()[:, 0]
    if len(again):
        distances[again] = reference.kth_distance(queries[again], rows, [], k, True)
    return distances if squared else distances.sqrt_()


def knn(
    queries: Tensor, rows: Tensor, packed: list[Tensor], k: int, squared: bool
) -> tuple[Tensor, Tensor]:
    """([Q, k] distances ascending, [Q, k] int64 indices)."""
    plan = _plan(len(rows), k)
    if plan is None:
        return reference.knn(queries, rows, [], k, squared)
    packed = packed or pack(rows)
    values, indices, safe = [], [], []
    for block in queries.split(plan.queries):
        found = _search(block, rows, packed, k, plan)
        # By row first, then stably by distance: equal distances stay in the order of the rows.
        order = found.lists.sort(1)
        near = found.distances.gather(1, order.indices).sort(dim=1, stable=True)
        row = order.values.gather(1, near.indices[:, :k]).long()
        missing = found.kth.isnan()[:, None]
        values.append(near.values[:, :k].masked_fill(missing, torch.nan))
        indices.append(row.masked_fill(missing, -1))
        safe.append(found.safe)
    distances, order_of = torch.cat(values), torch.cat(indices)
    again = (~torch.cat(safe)).nonzero()[:, 0]
    if len(again):
        distances[again], order_of[again] = reference.knn(queries[again], rows, [], k, True)
    return (distances if squared else distances.sqrt_()), order_of


class _Plan(NamedTuple):
    """How a search for k of N rows goes."""

    sample: int  # rows
    rank: int  # in the sample, of the threshold
    capacity: int  # of a query's list
    queries: int  # of a block


@functools.cache
def _plan(rows: int, k: int) -> _Plan | None:
    """None where a screened search has nothing to win: few rows, or k a large part of them."""
    if rows < 8 * _LEAST_SAMPLE or k > rows // 32:
        return None
    # About 32 of the sample are nearer than the k-th row: its rank is then known within a fifth.
    sample = max(_LEAST_SAMPLE, min(32 * rows // k, rows // 8, _LARGEST_SAMPLE))
    expected = k * sample / rows
    rank = math.ceil(expected + 3 * math.sqrt(expected) + 3)
    capacity = bucket(2 * math.ceil(rank * rows / sample) + 64)
    return _Plan(sample, rank, capacity, max(1, min(_QUERIES, _LISTS // (8 * capacity))))


class _Found(NamedTuple):
    kth: Tensor  # [b], NaN for a query that is not finite
    distances: Tensor  # [b, capacity], Inf beyond the list
    lists: Tensor  # [b, capacity] int32
    safe: Tensor  # [b]: no row outside the list can be among the k nearest


def _search(q: Tensor, rows: Tensor, packed: list[Tensor], k: int, plan: _Plan) -> _Found:
    mean, halves, numbers = packed
    q = q if q.stride(1) == 1 else q.contiguous()
    n, dim = rows.shape
    count, capacity = len(q), plan.capacity
    h, scale, norm, residual = _halve(q, mean)
    finite = norm.isfinite() & scale.isfinite()

    picked = slice(0, n // plan.sample * plan.sample, n // plan.sample)
    near = _product(h, halves[picked]).mul_(-2 * scale[:, None]).mul_(numbers[0, picked])
    near.add_(norm[:, None]).add_(numbers[3, picked]).clamp_(0, _LARGEST).nan_to_num_(nan=_LARGEST)
    threshold = q.new_empty(count)
    select_kth[(count,)](
        near, near.stride(0), threshold, near.shape[1], plan.rank,
        BLOCK=bucket(near.shape[1]), num_warps=16,
    )  # fmt: skip
    threshold = (threshold.sqrt() + residual + numbers[2, picked].amax()).square()

    slack = _slack(q)
    t = threshold.sqrt() * (1 + 2.0**-20) + residual
    floor = norm * (1 - slack) - t.square() * (1 + slack) - _TINY
    # A query that is not finite keeps nothing: its distances are NaN anyway.
    floor.masked_fill_(~finite, torch.inf)
    lists = torch.full((count, capacity), n, dtype=torch.int32, device=q.device)
    counts = torch.zeros(count, dtype=torch.int32, device=q.device)
    options = config("nearest", q.device, torch.float16, dim)
    grid = (triton.cdiv(count, options["BLOCK_M"]), triton.cdiv(n, options["BLOCK_N"]))
    screen_tiles[grid](
        h, 2 * scale, 2 * t, floor, halves, numbers[0], numbers[1], numbers[2], lists, counts,
        count, n, dim, capacity, EVEN_K=dim % options["BLOCK_K"] == 0, **options,
    )  # fmt: skip
    distances = q.new_empty((count, capacity))
    exact_distances[(count, triton.cdiv(capacity, _CHUNK))](
        q, q.stride(0), rows, rows.stride(0), lists, counts, distances, dim, capacity,
        BLOCK_C=_CHUNK, BLOCK_K=min(128, bucket(dim)), num_warps=4,
    )  # fmt: skip
    kth = q.new_empty(count)
    select_kth[(count,)](
        distances, capacity, kth, capacity, k, BLOCK=capacity, num_warps=max(1, capacity // 512)
        if capacity < 8192 else 16,
    )  # fmt: skip
    # The distances found and the threshold are both rounded.
    safe = (counts <= capacity) & (kth <= threshold * (1 - 2.0**-18)) | ~finite
    return _Found(kth.masked_fill_(~finite, torch.nan), distances, lists, safe)


def _halve(x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """h [n, D] float16, s, |s·h|² and ρ ≥ |x − mean − s·h|, each [n] float32."""
    centred = x.double() - mean.double()
    exponent = torch.frexp(centred.abs().amax(1)).exponent
    scale = torch.ldexp(centred.new_ones(()), exponent)
    h = (centred / scale[:, None]).half()
    rounded = h.double() * scale[:, None]
    residual = (centred - rounded).norm(dim=1) * (1 + 2.0**-20) + 2.0**-120
    return h, scale.float(), rounded.square().sum(1).float(), residual.float()


def _slack(x: Tensor) -> float:
    """Share of the squares that float32 may lose in the test: a sum of D products, few terms."""
    return (x.shape[1] + 32) * 2.0**-23


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b.T in float32 of float16 matrices."""
    if a.device.type == "cuda":
        return torch.mm(a, b.T, out_dtype=torch.float32)
    return a.float() @ b.float().T
