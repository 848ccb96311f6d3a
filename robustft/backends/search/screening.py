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

import abc
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from robustft.backends.reference import nearest as reference
from robustft.backends.search import plans, streaming
from robustft.backends.search.plans import ROWS, Plan, up
from robustft.backends.tensors import Layout, expect_search, product, unit_stride

# What `pack` makes. Another name means another format, and a saved bank is packed anew.
FORMAT = "screening-fp16-2"

COLUMNS = 64  # halves come in multiples of ROWS and of these: tiles need no masks
# Fields (rows) of Packed.numbers.
SCALE, RESIDUAL, NORM, SQUARE, NEAR, LEVEL = FIELDS = range(6)
RADIUS, REACH, FLOOR = range(3)  # fields of the aims

LARGEST = 1e37  # |c|² that is trusted: float32 holds all that (2) makes of two such rows
TINY = 2.0**-120  # more than underflow takes from a sum
WIDER = 2.0**-20  # share that covers a square root and a few more roundings
LOWEST = torch.finfo(torch.float32).min
SHARE = 2.0**-14  # ε of the module's docstring

CHUNK: int | None = None  # rows; None: as memory allows. A number streams any bank (tests).

_BLOCK = 8192  # rows that are packed at a time: 100 MB of float64 at D = 512


class Packed(NamedTuple):
    """Rows as the products take them: n, d multiples of ROWS and COLUMNS, contiguous halves.

    Rows and columns beyond the true ones are zero, with numbers that no test keeps (near +inf,
    residual, norm and square 0). A field of numbers has unit stride and starts at a multiple of 16
    bytes. Rows that are not trusted have halves and residual 0, near LOWEST, and norm inf (NaN if
    they are not finite). In a bank, s and λ are those of a row's tile: ROWS rows have the same.
    """

    halves: Tensor  # [n, d] float16: entries of magnitude ≤ 1, in a bank ≤ 2¹⁵
    numbers: Tensor  # [6, n] float32: s, ρ, |ṽ|², |c|²; of a bank alone near, λ


class Lists(NamedTuple):
    """The rows that may matter to each query of a block."""

    rows: Tensor  # [b, capacity] int32, no order
    values: Tensor  # [b, capacity] float32: P of the row in the same slot; distances after `exact`
    counts: Tensor  # [b] int32: rows that asked for a slot, more than the capacity perhaps
    kept: Tensor  # [b] int32: rows that `resolve` left, in the first slots
    ranks: Tensor  # [b] int32: rank of the answer among them, from 1


class SearchKernels(abc.ABC):
    """The kernels of a backend. All work is queued on the current stream, nothing is returned.

    b queries stand in `queries` padded to a multiple of ROWS; aims are [3, padded b] float32: r,
    2t and floor of (2). b·capacity is below 2³¹, N at most 2²⁸.
    """

    def round_rows(self, x: Tensor, mean: Tensor, into: Packed, scaled: bool = False) -> None:
        """Pack x [n, D] (float32, unit column stride) into n padded to a multiple of ROWS.

        Halves and all fields but near and λ; where the rows are `scaled`, s stands there already.
        In float64 throughout. This is what a kernel must do; a backend has its own for speed.
        """
        count, dim = x.shape
        centred = x.double() - mean.double()
        square = centred.square().sum(1)
        trusted = square <= LARGEST
        centred = centred.where(trusted[:, None], 0)
        if not scaled:
            # The power of two above max|c| as float32 sees it, 2^-60 at least, from its bits.
            exponent = torch.frexp(centred.abs().amax(1).float().clamp_min(2.0**-61)).exponent
            into.numbers[SCALE, :count] = (exponent + 127 << 23).view(torch.float32) * trusted
            into.numbers[SCALE, count:] = 0
        scale = into.numbers[SCALE, :count, None].double()
        h = (centred / scale.where(trusted[:, None], 1)).half()
        rounded = h.double() * scale
        norm = rounded.square().sum(1)
        into.halves.zero_()
        into.halves[:count, :dim] = h
        into.numbers[RESIDUAL : SQUARE + 1, count:] = 0
        residual = (centred - rounded).norm(dim=1) * (1 + WIDER) + TINY
        into.numbers[RESIDUAL, :count] = residual * trusted
        into.numbers[NORM, :count] = norm.where(trusted, 0 * square + torch.inf)
        into.numbers[SQUARE, :count] = square

    def plain(self, halves: Tensor, count: int, picked: Tensor | None = None) -> Tensor:
        """`count` rows of packed halves, [count, d]: the first, or those of numbers `picked`
        (int64, where the halves are). A backend may lay out its halves otherwise, each ROWS rows
        in their own place."""
        return halves[:count] if picked is None else halves[picked]

    @abc.abstractmethod
    def aim(
        self,
        products: Tensor,
        queries: Packed,
        sample: Tensor,
        rank: int,
        slack: float,
        aims: Tensor,
    ) -> None:
        """Radii and what follows from them, for all padded queries.

        products: [b, m] float32, P of each query and sampled row; sample: [6, m] numbers of those,
        fields of unit stride. r is the rank-th smallest upper bound of d (`resolve` says which).
        Where |q̃|² or r is not finite, and beyond b: r = 0, 2t = 0, floor = +inf.
        """

    @abc.abstractmethod
    def screen(
        self, queries: Packed, aims: Tensor, chunk: Packed, first_row: int, lists: Lists
    ) -> None:
        """Append the rows of the chunk that pass (2), or of which the test is NaN, with their P.

        Row j of the chunk is row first_row + j of the bank. Slots come from counts (an atomic add);
        a row whose slot is beyond the capacity is counted and not stored. No padded row or query
        ever passes.
        """

    @abc.abstractmethod
    def resolve(
        self, queries: Tensor, bank: Tensor, k: int, slack: float, every: bool, lists: Lists
    ) -> None:
        """Keep the rows that need an exact distance: at the front of rows, and fill kept and ranks.

        queries: [6, padded b] numbers; bank: [6, padded N] numbers of all rows. With
        S = |q̃|² + |ṽ|² − 2·s_q·s_v·P, e = slack·(|q̃|² + |ṽ|²) + TINY and ρ = ρ_q + ρ_v

            lower = max(0, √(S − e)·(1 − WIDER) − ρ·(1 + WIDER)),   0 where S − e is not above 0
            upper = (√max(0, S + e) + ρ)·(1 + WIDER),               inf where |ṽ|² is not finite

        L and U, the k-th smallest of each over the min(counts, capacity) listed rows, are inf if
        there are fewer. Kept are rows with lower ≤ U and upper ≥ L; the rank is k less the number
        of rows with upper < L. With `every`, kept are all rows with lower ≤ U, and the rank is k.
        """

    @abc.abstractmethod
    def exact(self, queries: Tensor, rows: Tensor, first_row: int, lists: Lists) -> None:
        """Σ(q − v)², in float64, rounded once, into values for the rows kept.

        queries [b, D] and rows [n, D] are float32 with unit column stride, any row stride; rows
        holds rows first_row … first_row + n − 1 of the bank. Slots of other rows are left alone.
        """

    @abc.abstractmethod
    def select(
        self, queries: Tensor, aims: Tensor, lists: Lists, kth: Tensor, safe: Tensor
    ) -> None:
        """kth [b] float32: the ranks-th smallest value of the rows kept, inf if they are fewer, NaN
        where |q̃|² (queries: [6, padded b] numbers) is NaN; safe [b] bool: that, or counts ≤
        capacity and kth ≤ r²·(1 − 4·WIDER)."""


def slack_of(dim: int) -> float:
    """σ of the module's docstring."""
    return (1.5 * dim + 32) * 2.0**-23


def padded(count: int, dim: int, device: torch.device) -> Packed:
    """Room for `count` packed rows."""
    count, dim = up(count, ROWS), up(dim, COLUMNS)
    return Packed(
        torch.empty((count, dim), dtype=torch.float16, device=device),
        torch.empty((len(FIELDS), count), dtype=torch.float32, device=device),
    )


def layout(rows: Tensor) -> Layout:
    """What `pack` makes of these rows: dtypes and shapes."""
    count, dim = up(rows.shape[0], ROWS), up(rows.shape[1], COLUMNS)
    return [
        (rows.dtype, (rows.shape[1],)),
        (torch.float16, (count, dim)),
        (torch.float32, (len(FIELDS), count)),
    ]


def pack(rows: Tensor, steps: SearchKernels, device: torch.device) -> list[Tensor]:
    """[mean [D], halves, numbers] where the rows are; the work is done on `device`, by blocks."""
    count, dim = rows.shape
    total = torch.zeros(dim, dtype=torch.float64, device=device)
    for part in _slices(count, _BLOCK):
        total += rows[part].to(device).double().sum(0)
    mean = (total / count).to(rows.dtype)
    packed = padded(count, dim, rows.device)
    for part in _slices(count, _BLOCK):
        (x,) = unit_stride(rows[part].to(device))
        into = pack_tiles(x, mean, steps)
        there = slice(part.start, part.start + len(into.halves))
        packed.halves[there] = into.halves
        packed.numbers[:, there] = into.numbers
    return [mean.to(rows.device), *packed]


def pack_tiles(x: Tensor, mean: Tensor, steps: SearchKernels) -> Packed:
    """Rows of a bank: with the numbers that a tile of ROWS has in common, and near."""
    count, dim = x.shape
    into = padded(count, dim, x.device)
    # 2¹⁵ for the tile's largest number leaves 29 octaves down to where halves lose digits.
    largest = (x - mean).abs().amax(1)
    largest = largest.where(largest < 2.0**62, 0).clamp_min(2.0**-46)  # above: not trusted
    tiles = F.pad(largest, (0, len(into.halves) - count)).view(-1, ROWS).amax(1)
    scale = ((tiles.view(torch.int32) >> 23) - 14 << 23).view(torch.float32)  # from its bits
    into.numbers[SCALE] = scale.repeat_interleave(ROWS)
    steps.round_rows(x, mean, into, scaled=True)
    slack = slack_of(dim)
    residual, norm = into.numbers[RESIDUAL].double(), into.numbers[NORM].double()
    level = residual.view(-1, ROWS).median(1).values.repeat_interleave(ROWS)
    covered = torch.maximum(residual, level)
    apart = covered.square() + (covered - level).square() / SHARE
    near = (norm * (1 - slack) - apart * (1 + slack) - TINY).clamp_min(LOWEST)
    into.numbers[NEAR] = near.where(norm.isfinite(), LOWEST)
    into.numbers[NEAR, count:] = torch.inf
    into.numbers[LEVEL] = level
    return into


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
    packed = packed or pack(rows, steps, queries.device)
    bank = _Bank(rows, packed, tries[0], queries.device, steps)
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
    queries: Tensor, bank: _Bank, k: int, plan: Plan, every: bool, steps: SearchKernels
) -> tuple[tuple[Tensor, ...], Tensor]:
    """The answers, and which of them are certain [Q]."""
    kth = queries.new_empty(len(queries))
    safe = queries.new_empty(len(queries), dtype=torch.bool)
    count = len(queries)
    blocks = _slices(count, plan.queries(count, bank.device, bank.streamed, every))
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


class _Bank:
    """A packed bank as a search on `device` meets it: there, or streamed from the host."""

    def __init__(
        self,
        rows: Tensor,
        packed: list[Tensor],
        plan: Plan,
        device: torch.device,
        steps: SearchKernels,
    ) -> None:
        mean, halves, numbers = packed
        self.streamed = rows.device != device or CHUNK is not None
        self.rows = rows if self.streamed else unit_stride(rows)[0]
        self.halves, self.device = halves, device
        self.mean, self.numbers = mean.to(device), numbers.to(device)
        self.slack = slack_of(rows.shape[1])
        picked = plans.sampled(len(rows), plan.sample, halves.device)
        self.sample = steps.plain(halves, plan.sample, picked).to(device)
        self.sample_numbers = self.numbers.index_select(1, picked.to(device))

    def chunks(self) -> Iterator[tuple[int, Packed]]:
        """(first row, packed rows): all that is packed, once."""
        if not self.streamed:
            yield 0, Packed(self.halves, self.numbers)
            return
        size = up(self._chunk_rows(self.halves), ROWS)
        count, width = self.halves.shape

        def fill(first: int, last: int, out: Tensor) -> None:
            out.copy_(self.halves[first:last])

        for first, part in streaming.stream(fill, count, width, torch.half, self.device, size):
            yield first, Packed(part, self.numbers[:, first : first + len(part)])

    def exact(self, queries: Tensor, lists: Lists, steps: SearchKernels) -> None:
        """steps.exact of all rows kept.

        From a bank on the host each row that any list kept is gathered, once, in the order of the
        rows: never more than the bank, and for few queries next to nothing. The device has to say
        which they are, so the host waits for it.
        """
        if not self.streamed:
            steps.exact(queries, self.rows, 0, lists)
            return
        slots = torch.arange(lists.rows.shape[1], device=self.device) < lists.kept[:, None]
        listed = lists.rows[slots]
        needed, places = listed.unique(return_inverse=True)
        if not len(needed):
            return
        wanted = needed.to(self.rows.device)
        lists.rows[slots] = places.int()

        def fill(first: int, last: int, out: Tensor) -> None:
            torch.index_select(self.rows, 0, wanted[first:last], out=out)

        width, size = self.rows.shape[1], self._chunk_rows(self.rows)
        parts = streaming.stream(fill, len(needed), width, torch.float32, self.device, size)
        for first, part in parts:
            steps.exact(queries, part, first, lists)
        lists.rows[slots] = listed

    def _chunk_rows(self, rows: Tensor) -> int:
        row_bytes = rows.shape[1] * rows.element_size()
        return CHUNK or streaming.chunk_rows(row_bytes, self.device)


def _search(
    q: Tensor,
    bank: _Bank,
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


def _slices(length: int, step: int) -> Iterator[slice]:
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))
