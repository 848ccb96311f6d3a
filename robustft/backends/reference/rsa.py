"""Representation similarity analysis (Kriegeskorte et al. 2008): how much of a geometry is kept.

    E_ij = |a_i − a_j|,  F_ij = |b_i − b_j|            metric "euclidean"
    E_ij = 1 − cos(a_i, a_j),  F_ij likewise           metric "cosine"
    rsa  = correlation of E_ij and F_ij over i < j     Pearson, or of their ranks: Spearman

`rsa` is the definition. `correlation` is what backend="reference" runs: tiles of the two distance
matrices, in float64 throughout.

Distances. |a − b|² comes from the product of centred rows, and is summed anew as Σ(a − b)² where
the product leaves fewer than eight digits. 1 − cos is ½|â − b̂|² of the unit rows, likewise, and 0
below SAME.

Pearson. Each tile gives its mean and its moments about it; tiles are merged by the update of Chan,
Golub and LeVeque, so nothing cancels. Distances whose spread is below 1e-12 of their size are
constant, and the correlation is NaN.

Spearman. Distances are rounded to 40 bits, so that equal ones do not differ by float64 noise; equal
ones share their mean rank. Up to EXACT rows all pairs are ranked. Beyond, distances are counted in
BINS bins with edges at the quantiles of a sample, and all of a bin share its mean rank. If h is the
largest bin's share of the pairs, a rank differs from its bin's by at most h/2 of the whole, which
moves the result by at most about h of each matrix (some 1e-4 for distances without heavy ties, and
in practice far less, the differences having mean zero).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

TILE = 1024  # about six tiles are alive at once: 50 MB
EXACT = 5000  # 12.5 million pairs, about 1 GB while they are ranked
BINS = 1 << 14
SAME = 1e-30  # |â − b̂|² of float64 unit rows that nothing but rounding tells apart
_SAMPLE = 2048  # rows, 2.1 million pairs: 128 a bin


def rsa(a: Tensor, b: Tensor, metric: str = "euclidean", method: str = "pearson") -> Tensor:
    """The correlation for features [N, D] and [N, D'], from the full matrices.

    NaN where a feature is not finite, or a row is zero, which has no cosine.
    """
    i, j = torch.triu_indices(len(a), len(a), 1)
    pairs = []
    for x in (a, b):
        if metric == "cosine":
            unit = x / x.norm(dim=1, keepdim=True)
            pairs.append(1 - (unit[i] * unit[j]).sum(1))
        else:
            pairs.append((x[i] - x[j]).norm(dim=1))
        if method == "spearman":  # a NaN would be given a rank
            finite = pairs[-1].isfinite().all()
            pairs[-1] = _ranks(pairs[-1]).masked_fill(~finite, torch.nan)
    return torch.corrcoef(torch.stack(pairs))[0, 1]


def correlation(a: Tensor, b: Tensor, metric: str, method: str) -> Tensor:
    """A float64 scalar."""
    both = _Space.of(a, metric), _Space.of(b, metric)
    if method == "pearson":
        result = _pearson(_pairs(both))
    elif len(a) <= EXACT:
        x, y = (torch.cat([_rounded(d) for d in one.all_distances()]) for one in both)
        result = _pearson([(_ranks(x), _ranks(y))])
    else:
        result = _spearman_by_bins(both)
    # Rows of a space are NaN where a feature is not finite, or a zero row has no cosine; sorting
    # would give a NaN a rank.
    finite = both[0].rows.isfinite().all() & both[1].rows.isfinite().all()
    return result.masked_fill(~finite, float("nan"))


class _Space(NamedTuple):
    """One set of rows, and the distances between them, tile by tile."""

    rows: Tensor
    norms: Tensor
    cosine: bool

    @staticmethod
    def of(rows: Tensor, metric: str) -> _Space:
        rows, cosine = rows.double(), metric == "cosine"
        if cosine:
            rows = rows / rows.norm(dim=1, keepdim=True)  # a zero row has no direction: NaN
        rows = rows - rows.mean(0)
        return _Space(rows, rows.square().sum(1), cosine)

    def tiles(self) -> Iterator[tuple[slice, slice]]:
        for i in range(0, len(self.rows), TILE):
            for j in range(i, len(self.rows), TILE):
                yield slice(i, i + TILE), slice(j, j + TILE)

    def all_distances(self) -> Iterator[Tensor]:
        for i, j in self.tiles():
            yield self.distances(i, j)

    def distances(self, i: slice, j: slice) -> Tensor:
        """Those between the rows of two slices; of a slice with itself, each pair once: [pairs]."""
        x, y = self.rows[i], self.rows[j]
        size = self.norms[i, None] + self.norms[j]
        squared = torch.addmm(size, x, y.T, alpha=-2)
        cancelled = squared < 1e-8 * size
        if i == j:
            cancelled &= torch.ones_like(cancelled).triu(1)
        for part in cancelled.nonzero().split(max(1, TILE * TILE // x.shape[1])):
            p, q = part.T
            squared[p, q] = (x[p] - y[q]).square().sum(1)
        if i == j:
            squared = squared[torch.ones_like(cancelled).triu(1)]
        squared = squared.flatten()
        if self.cosine:
            squared.masked_fill_(squared < SAME, 0)
        return squared / 2 if self.cosine else squared.clamp_min(0).sqrt()


def _pairs(both: tuple[_Space, _Space]) -> Iterator[tuple[Tensor, Tensor]]:
    for i, j in both[0].tiles():
        yield both[0].distances(i, j), both[1].distances(i, j)


class _Moments(NamedTuple):
    """Count, means, and sums of squares and products about the means."""

    n: int
    x: Tensor
    y: Tensor
    xx: Tensor
    yy: Tensor
    xy: Tensor

    @staticmethod
    def of(x: Tensor, y: Tensor) -> _Moments:
        mean_x, mean_y = x.mean(), y.mean()
        x, y = x - mean_x, y - mean_y
        return _Moments(len(x), mean_x, mean_y, x.dot(x), y.dot(y), x.dot(y))

    def merged(self, other: _Moments) -> _Moments:
        n = self.n + other.n
        dx, dy = other.x - self.x, other.y - self.y
        share = other.n / n
        weight = self.n * share
        return _Moments(
            n,
            self.x + share * dx,
            self.y + share * dy,
            self.xx + other.xx + weight * dx * dx,
            self.yy + other.yy + weight * dy * dy,
            self.xy + other.xy + weight * dx * dy,
        )

    def correlation(self) -> Tensor:
        flat_x = self.xx <= (1e-12 * self.x) ** 2 * self.n
        flat_y = self.yy <= (1e-12 * self.y) ** 2 * self.n
        value = self.xy / (self.xx.sqrt() * self.yy.sqrt())
        return value.clamp(-1, 1).masked_fill(flat_x | flat_y, float("nan"))


def _pearson(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    total: _Moments | None = None
    for x, y in pairs:
        if len(x) == 0:  # a last tile of one row has no pair
            continue
        new = _Moments.of(x, y)
        total = new if total is None else total.merged(new)
    assert total is not None  # three rows have three pairs
    return total.correlation()


def _rounded(x: Tensor) -> Tensor:
    """x to 40 bits (Veltkamp's splitting)."""
    scaled = (2.0**13 + 1) * x
    return scaled - (scaled - x)


def _ranks(x: Tensor) -> Tensor:
    """Ranks from 1, equal values sharing their mean rank, in float64."""
    x, order = x.sort()
    _, counts = x.unique_consecutive(return_counts=True)
    return torch.empty_like(x).scatter_(0, order, _mean_ranks(counts).repeat_interleave(counts))


def _mean_ranks(counts: Tensor) -> Tensor:
    """The mean rank of each group of equal values, from the group sizes in ascending order."""
    return counts.cumsum(0).double() - (counts.double() - 1) / 2


def _spearman_by_bins(both: tuple[_Space, _Space]) -> Tensor:
    edges = [_quantiles(one) for one in both]
    counts = [torch.zeros(BINS, dtype=torch.int64, device=one.rows.device) for one in both]
    for tile in _pairs(both):
        for part, edge, count in zip(tile, edges, counts, strict=True):
            count += torch.bincount(torch.bucketize(_rounded(part), edge), minlength=BINS)
    ranks = [_mean_ranks(count) for count in counts]
    return _pearson(
        (
            ranks[0][torch.bucketize(_rounded(x), edges[0])],
            ranks[1][torch.bucketize(_rounded(y), edges[1])],
        )
        for x, y in _pairs(both)
    )


def _quantiles(space: _Space) -> Tensor:
    """BINS − 1 edges at equal steps among the distances of evenly spaced rows."""
    step = -(-len(space.rows) // _SAMPLE)
    sample = _Space(space.rows[::step], space.norms[::step], space.cosine)
    found = torch.cat([_rounded(d) for d in sample.all_distances()]).sort().values
    where = torch.linspace(0, len(found) - 1, BINS + 1, device=found.device)[1:-1].long()
    return found[where]
