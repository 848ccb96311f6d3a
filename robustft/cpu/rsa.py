"""rsa on the CPU (csrc/cpu/rsa.cpp).

The kernel works in float32 on centred rows; this module prepares them, and leaves to the reference
what float32 cannot serve: distances that differ by less than SPREAD of their size, whose digits a
float32 distance does not hold, and exact ranks, where equal distances must be found equal.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from robustft import _native
from robustft.cpu._tensors import empty, matrices
from robustft.reference import rsa as reference

# A float32 distance is right to some 1e-7 of its size: 1e-4 of a standard deviation, at random,
# where that is 1e-3 of the mean. Such noise moves a correlation by its square.
SPREAD = 1e-3
_CHUNK = 1 << 20  # elements in float64 at a time: 8 MB
_CELLS = 1 << 16


def correlation(a: Tensor, b: Tensor, metric: str, method: str) -> Tensor:
    """A float64 scalar."""
    if method == "spearman" and len(a) <= reference.EXACT:
        return reference.correlation(a, b, metric, method)
    cosine = metric == "cosine"
    both = _Space.of(a, cosine), _Space.of(b, cosine)
    if not all(math.isfinite(space.shift) for space in both):  # NaN, Inf, or a zero row's cosine
        return a.new_full((), math.nan, dtype=torch.float64)
    pairs = len(a) * (len(a) - 1) // 2
    addresses = (*both[0].addresses(), *both[1].addresses())
    shared = (*addresses, len(a), cosine, torch.get_num_threads())
    sums = torch.empty(5, dtype=torch.float64)
    _native.rsa_moments(*shared, sums.data_ptr())
    moments = _Moments.of(sums, pairs)
    for space, mean, square in ((both[0], moments.x, moments.xx), (both[1], moments.y, moments.yy)):
        if square <= (SPREAD * (space.shift + mean)) ** 2 * pairs:
            return reference.correlation(a, b, metric, method)
    if method == "spearman":
        moments = _rank_moments(a, b, both, shared, pairs)
    value = moments.xy / math.sqrt(moments.xx * moments.yy)
    return a.new_full((), min(1.0, max(-1.0, value)), dtype=torch.float64)


class _Space(NamedTuple):
    """One set of rows as the kernel wants it."""

    panels: Tensor
    squares: Tensor
    dim: int
    shift: float  # the root mean square of the distances; "cosine": their mean
    scale: float  # the kernel's rows are this much longer

    @staticmethod
    def of(rows: Tensor, cosine: bool) -> _Space:
        (rows,), dtype = matrices(rows)
        n, dim = rows.shape
        mean, factors, scale = _centre(rows, cosine)
        padded = -(-n // _native.rsa_panel()) * _native.rsa_panel()
        panels, squares = empty((padded, dim), torch.float32), torch.empty(padded)
        _native.rsa_pack(
            rows.data_ptr(),
            rows.stride(0),
            dtype,
            n,
            dim,
            mean.data_ptr(),
            factors.data_ptr(),
            scale,
            torch.get_num_threads(),
            panels.data_ptr(),
            squares.data_ptr(),
        )
        # Σ over i < j of |x_i − x_j|² is N·Σ|x_i|² of centred rows.
        square = 2 * squares.sum(dtype=torch.float64).item() / (n - 1)
        return _Space(panels, squares, dim, square / 2 if cosine else math.sqrt(square), scale)

    def addresses(self) -> tuple[int, int, int, float]:
        return self.panels.data_ptr(), self.squares.data_ptr(), self.dim, self.shift


def _centre(rows: Tensor, cosine: bool) -> tuple[Tensor, Tensor, float]:
    """The mean row, each row's factor before it is subtracted (1, or for "cosine" 1/length), and a
    power of two that brings the rows to about 1, so that no square leaves float32's range."""
    n, dim = rows.shape
    total = torch.zeros(dim, dtype=torch.float64)
    factors = torch.ones(n, dtype=torch.float64)
    largest = 0.0
    step = max(1, _CHUNK // dim)
    for i in range(0, n, step):
        part = rows[i : i + step].double()
        if cosine:
            factors[i : i + step] = 1 / part.norm(dim=1)
            part *= factors[i : i + step, None]
        total += part.sum(0)
        largest = max(largest, part.abs().max().item())
    finite = 0 < largest < math.inf
    return total / n, factors, 2.0 ** -math.frexp(largest)[1] if finite and not cosine else 1.0


class _Moments(NamedTuple):
    """Means, and sums of squares and products about them."""

    x: float
    y: float
    xx: float
    yy: float
    xy: float

    @staticmethod
    def of(sums: Tensor, pairs: int) -> _Moments:
        x, y, xx, yy, xy = sums.tolist()
        return _Moments(
            x / pairs, y / pairs, xx - x * x / pairs, yy - y * y / pairs, xy - x * y / pairs
        )


def _rank_moments(
    a: Tensor, b: Tensor, both: tuple[_Space, _Space], shared: tuple[float, ...], pairs: int
) -> _Moments:
    """Of mean ranks by bins, as reference.rsa states: count, then look up."""
    cosine = bool(shared[9])
    count = reference.BINS
    edges = torch.empty(2, count - 1)
    starts = torch.empty(2, _CELLS + 1, dtype=torch.int32)
    ranks = torch.empty(2, count)
    cells: list[int] = []
    for i, (rows, space) in enumerate(zip((a, b), both, strict=True)):
        edges[i] = _edges(rows, cosine, space.scale)
        starts[i], base, drop = _starts(edges[i])
        cells += base, drop
    bins = (edges.data_ptr(), starts.data_ptr(), ranks.data_ptr(), count, _CELLS, *cells)
    counts = torch.empty(2, count, dtype=torch.int64)
    _native.rsa_count(*shared, *bins, counts.data_ptr())
    for i in range(2):
        # From −½ to ½, about the mean rank.
        ranks[i] = (reference._mean_ranks(counts[i]) - (pairs + 1) / 2) / pairs
    sums = torch.empty(5, dtype=torch.float64)
    flat = (*shared[:3], 0.0, *shared[4:7], 0.0, *shared[8:])
    _native.rsa_rank_moments(*flat, *bins, sums.data_ptr())
    return _Moments.of(sums, pairs)


def _edges(rows: Tensor, cosine: bool, scale: float) -> Tensor:
    """Quantiles of the distances between evenly spaced rows, as the kernel's float32 sees them."""
    sample = rows[:: -(-len(rows) // reference._SAMPLE)]
    found = reference._quantiles(
        reference._Space.of(sample.double() * scale, "cosine" if cosine else "euclidean")
    )
    # Equal distances, float32 noise apart, must fall on one side of an edge that equals them.
    return (found * (1 + 2.0**-20)).float()


def _starts(edges: Tensor) -> tuple[Tensor, int, int]:
    """How many edges lie below each cell of float patterns, the first cell, and a cell's bits."""
    first, last = (int(edges[i].view(torch.int32)) for i in (0, -1))
    drop = 0
    while (last >> drop) - (first >> drop) >= _CELLS:
        drop += 1
    base = first >> drop
    lowest = ((torch.arange(_CELLS + 1) + base) << drop).clamp(max=0x7F7FFFFF)
    starts = torch.searchsorted(edges, lowest.to(torch.int32).view(torch.float32)).to(torch.int32)
    starts[0], starts[-1] = 0, len(edges)
    return starts, base, drop
