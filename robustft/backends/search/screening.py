"""The search of `nearest` on a GPU, but for its kernels: what Triton and CUDA C++ share.

    d(q, v) = |q − v|,   d² = Σ (q − v)²;   queries [Q, D], rows [N, D], k-th smallest d² a query

Packing. A row less the bank's mean, c = v − μ, is rounded to ṽ = s·h with float16 h and a power of
two s, one for each tile of ROWS rows; beside it are known |ṽ|² and ρ_v ≥ |c − ṽ|. Queries likewise,
each with an s of its own. By the triangle inequality

    | d(q, v) − |q̃ − ṽ| |  ≤  ρ_q + ρ_v                                                        (1)

and |q̃ − ṽ|² = |q̃|² + |ṽ|² − 2·s_q·s_v·P with P = <h_q, h_v> from the tensor cores. With σ as
below, rounding moves that by less than e = σ·(|q̃|² + |ṽ|²) + TINY.

A search, for a block of queries:

1. aim: upper bounds of d to a sample of rows (plans.py); the j-th smallest is the radius r, such
   that somewhat more than k of all rows are nearer.
2. screen: every row with |q̃ − ṽ| ≤ r + ρ_q + ρ_v goes to the query's list with its P, slots from
   an integer counter. Tiles want one multiplication and addition and one comparison a row; so the
   test has two constants of a tile of rows, its s and a usual ρ, the level λ (the median of the
   tile's ρ_v). With t = r·(1 + 2⁻²⁰) + ρ_q and ρ' = max(ρ_v, λ):

       (2·s_q·s)·P − near_v ≥ floor_q − 2t·λ                                                    (2)
       near_v = |ṽ|²·(1 − σ) − (ρ'² + (ρ' − λ)²/ε)·(1 + σ) − TINY
       floor_q = |q̃|²·(1 − σ) − (1 + ε)·t²·(1 + σ) − TINY

   since (t + ρ')² = t² + 2t·λ + 2t·(ρ' − λ) + ρ'² and 2t·(ρ' − λ) ≤ ε·t² + (ρ' − λ)²/ε, whatever t
   and λ are: a row that is rounded worse than its tile's others loosens its own test alone. With
   ε = 2⁻¹⁴ all are loosened by less than 2⁻¹⁵ of t, where ρ is some 2⁻¹³ of a row's length.

3. resolve: P gives each listed row bounds of d by (1), without touching the row. With L and U the
   k-th smallest lower and upper bound, L ≤ d_k ≤ U. Rows whose upper bound is below L are nearer
   than the k-th, rows whose lower bound is above U are farther; m rows surely nearer leave the
   (k − m)-th of the others as the answer. For `knn` all that may be among the k are kept.
4. exact: Σ(q − v)² of the rows that are left, in float64, rounded once.
5. select: the k-th of them, if it is certain.

The certificate. r is a guess, (2) is not: a row that is not listed is farther than r. If a list did
not overflow and its k-th distance is at most r, no other row matters. Queries for which that fails
(a poor guess, or more near rows than a list holds) are screened once more, with a larger radius and
longer lists; what that leaves is searched by the reference. Lists are sets: no order of work, block
or chunk changes a bit.

Rounding. A tensor core adds 8 products (or more) to its running sum after aligning all nine to the
largest and cutting them at 2⁻²³ of it or finer; the result loses 2⁻²² more. Each partial sum is at
most |h_q|·|h_v|, so P errs by less than 11/8·(D + 8)·2⁻²³·|h_q|·|h_v|, and 2|q̃||ṽ| ≤ |q̃|² + |ṽ|².
What else is rounded in (2) and in the bounds is less than 16 operations of 2⁻²³ of sums whose terms
near_v and floor_q hold (2t·λ ≤ t² + ρ'²): σ is (3/2·D + 32)·2⁻²³. Products of two s are exact.
Underflow takes less than TINY, since no s is below 2⁻⁶⁰. Rows of |c|² > 10³⁷ are
not trusted: a bank row is always listed (lower bound 0, no upper bound), a query goes to the
reference. A query with NaN or Inf has |q̃|² = NaN, and NaN as its answer.

Memory on the device. WORKSPACE bytes of lists and sampled products (8 bytes a slot, 40 where `knn`
sorts; a backend's step may take half as much again while it runs), 24 bytes a bank row for its
numbers, and the rows and halves if the bank lies there. A bank on the host is streamed
(streaming.py beside this file): its halves once a block of queries, then the rows that step 4 asks
for, each once. That takes two buffers on each side; and since every block sends the bank over the
bus, a block may take a quarter of the free memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustft.backends.reference import nearest as reference
from robustft.backends.search import banks, plans, streaming
from robustft.backends.search.banks import Bank, slices
from robustft.backends.search.interface import Lists, SearchKernels
from robustft.backends.search.packing import SQUARE, layout, padded
from robustft.backends.search.plans import ROWS, Plan, up
from robustft.backends.tensors import expect_search, product, unit_stride


def kth_distance(
    queries: Tensor, rows: Tensor, packed: list[Tensor], k: int, squared: bool, steps: SearchKernels
) -> Tensor:
    """[Q]: the distance from each query to its k-th nearest row."""
    (kth,) = _searched(queries, rows, packed, k, False, steps)
    return _root(kth, squared)


def knn(
    queries: Tensor, rows: Tensor, packed: list[Tensor], k: int, squared: bool, steps: SearchKernels
) -> tuple[Tensor, Tensor]:
    """([Q, k] distances ascending, [Q, k] int64 indices)."""
    distances, indices = _searched(queries, rows, packed, k, True, steps)
    return _root(distances, squared), indices


def _searched(
    queries: Tensor, rows: Tensor, packed: list[Tensor], k: int, every: bool, steps: SearchKernels
) -> tuple[Tensor, ...]:
    """Squared: k-th distances, or with `every` distances and indices of all k."""
    expect_search(queries, rows, packed, k, layout)
    tries = plans.plans(len(rows), k)
    if not tries:
        return _by_reference(every, queries, rows, packed, k)
    packed = packed or banks.pack(rows, steps, queries.device)
    bank = Bank(rows, packed, tries[0], queries.device, steps)
    (queries,) = unit_stride(queries)
    found, safe = _screened(queries, bank, k, tries[0], every, steps)
    again = (~safe).nonzero()[:, 0]  # the host waits here, once
    for plan in tries[1:]:
        if len(again):
            better, safe = _screened(queries[again], bank, k, plan, every, steps)
            for whole, part in zip(found, better, strict=True):
                whole[again] = part
            again = again[~safe]
    if len(again):
        last = _by_reference(every, queries[again], rows, packed, k)
        for whole, part in zip(found, last, strict=True):
            whole[again] = part
    return found


def _screened(
    queries: Tensor, bank: Bank, k: int, plan: Plan, every: bool, steps: SearchKernels
) -> tuple[tuple[Tensor, ...], Tensor]:
    """The answers, and which of them are certain [Q]."""
    kth = queries.new_empty(len(queries))
    safe = queries.new_empty(len(queries), dtype=torch.bool)
    count = len(queries)
    blocks = slices(count, plan.queries(count, bank.device, bank.streamed, every))
    if not every:
        for part in blocks:
            _search(queries[part], bank, k, plan, False, steps, kth[part], safe[part])
        return (kth,), safe
    distances = queries.new_empty((len(queries), k))
    indices = queries.new_empty((len(queries), k), dtype=torch.int64)
    for part in blocks:
        lists = _search(queries[part], bank, k, plan, True, steps, kth[part], safe[part])
        # Bits of floats that are not negative sort as they do; equal ones go by their rows.
        keys = lists.values.view(torch.int32).long().bitwise_left_shift_(32).add_(lists.rows)
        slots = torch.arange(keys.shape[1], device=keys.device)
        keys.masked_fill_(slots >= lists.kept[:, None], torch.iinfo(torch.int64).max)
        keys = keys.sort(1).values[:, :k]
        distances[part] = (keys >> 32).int().view(torch.float32)
        indices[part] = keys & 0xFFFFFFFF
    missing = kth.isnan()[:, None]
    distances.masked_fill_(missing, torch.nan)
    indices.masked_fill_(missing, -1)
    return (distances, indices), safe


def _search(
    q: Tensor,
    bank: Bank,
    k: int,
    plan: Plan,
    every: bool,
    steps: SearchKernels,
    kth: Tensor,
    safe: Tensor,
) -> Lists:
    """All steps for a block of queries; kth [b], and whether that is certain, are written."""
    count, capacity = len(q), plan.capacity
    queries = padded(count, q.shape[1], q.device)
    steps.round_rows(q, bank.mean, queries)
    aims = q.new_empty((3, len(queries.halves)))
    # Only radii come from it: its rounding is free.
    products = product(steps.plain(queries.halves, count), bank.sample.T)
    steps.aim(products, queries, bank.sample_numbers, plan.rank, bank.slack, aims)
    # Lines at aligned addresses, whatever the count: kernels are compiled for those.
    integers = torch.zeros((3, up(count, ROWS)), dtype=torch.int32, device=q.device)[:, :count]
    lists = Lists(
        torch.empty((count, capacity), dtype=torch.int32, device=q.device),
        q.new_empty((count, capacity)),
        *integers,
    )
    for first, chunk in bank.chunks():
        steps.screen(queries, aims, chunk, first, lists)
    steps.resolve(queries.numbers, bank.numbers, k, bank.slack, every, lists)
    bank.exact(q, lists, steps)
    steps.select(queries.numbers, aims, lists, kth, safe)
    return lists


def _by_reference(
    every: bool, queries: Tensor, rows: Tensor, packed: list[Tensor], k: int
) -> tuple[Tensor, ...]:
    """The reference's answer, squared. A bank on the host comes to the queries if there is room,
    else the queries go to it."""
    device = queries.device
    known = [packed[0], packed[2][SQUARE, : len(rows)]] if packed else []
    if rows.device != device:
        if rows.nbytes > streaming.free_bytes(device) // 4:
            queries = queries.to(rows.device)
        else:
            rows, known = rows.to(device), [part.to(device) for part in known]
    if not every:
        return (reference.kth_distance(queries, rows, known, k, True).to(device),)
    distances, indices = reference.knn(queries, rows, known, k, True)
    return distances.to(device), indices.to(device)


def _root(distances: Tensor, squared: bool) -> Tensor:
    return distances if squared else distances.sqrt_()
