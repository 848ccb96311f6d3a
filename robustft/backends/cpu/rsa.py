"""rsa on the CPU (csrc/cpu/rsa.cpp).

The kernel works in float32 on centred rows; this module prepares them, and leaves to the reference
what float32 cannot serve: distances that differ by less than SPREAD of their size, whose digits a
float32 distance does not hold; exact ranks, where equal distances must be found equal; float64.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from robustft import _native
from robustft.backends.cpu.pointers import empty, matrices
from robustft.backends.reference import rsa as reference
from robustft.backends.tensors import expect_samples

# A float32 distance is right to some 1e-7 of its size: 1e-4 of a standard deviation, at random,
# where that is 1e-3 of the mean. Such noise moves a correlation by its square.
SPREAD = 1e-3
# A mean cosine distance below which rounding of unit rows may be most of it (reference.SAME).
_ONE_DIRECTION = 1e6 * reference.SAME
_CHUNK = 1 << 20  # elements in float64 at a time: 8 MB
_CELLS = 1 << 15  # 64 KB: about one edge in a cell where distances are frequent
_LARGEST = 0x7F7FFFFF  # the pattern of the largest float32


def correlation(a: Tensor, b: Tensor, metric: str, method: str) -> Tensor:
    """A float64 scalar."""
    expect_samples(a, b)
    exact = method == "spearman" and len(a) <= reference.EXACT
    if exact or torch.float64 in (a.dtype, b.dtype):
        return reference.correlation(a, b, metric, method)
    cosine = metric == "cosine"
    both = _Space.of(a, cosine), _Space.of(b, cosine)
    if not all(math.isfinite(space.shift) for space in both):  # NaN, Inf, or a zero row's cosine
        return a.new_full((), math.nan, dtype=torch.float64)
    if cosine and min(space.shift for space in both) < _ONE_DIRECTION:
        return reference.correlation(a, b, metric, method)
    moments = _moments(both, cosine) if method == "pearson" else _rank_moments(a, b, both, cosine)
    if moments is None:
        return reference.correlation(a, b, metric, method)
    value = moments.xy / math.sqrt(moments.xx * moments.yy)
    return a.new_full((), min(1.0, max(-1.0, value)), dtype=torch.float64)


class _Space(NamedTuple):
    """One set of rows as the kernel wants it."""

    panels: Tensor
    squares: Tensor
    rows: int
    dim: int
    shift: float  # the root mean square of the distances; "cosine": their mean
    scale: float  # the kernel's rows are this much longer

    @staticmethod
    def of(rows: Tensor, cosine: bool) -> _Space:
        (rows,), dtype = matrices(features=rows)
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
        shift = square / 2 if cosine else math.sqrt(square)
        return _Space(panels, squares, n, dim, shift, scale)

    @property
    def pairs(self) -> int:
        return self.rows * (self.rows - 1) // 2


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


_Arguments = tuple[int, int, int, float, int, int, int, float, int, bool, int]


def _arguments(both: tuple[_Space, _Space], cosine: bool, shifted: bool = True) -> _Arguments:
    x, y = both
    return (
        *(x.panels.data_ptr(), x.squares.data_ptr(), x.dim, x.shift if shifted else 0.0),
        *(y.panels.data_ptr(), y.squares.data_ptr(), y.dim, y.shift if shifted else 0.0),
        *(x.rows, cosine, torch.get_num_threads()),
    )


def _moments(both: tuple[_Space, _Space], cosine: bool) -> _Moments | None:
    """Of the distances; None if they differ by too little."""
    sums = torch.empty(5, dtype=torch.float64)
    _native.rsa_moments(*_arguments(both, cosine), sums.data_ptr())
    pairs = both[0].pairs
    m = _Moments.of(sums, pairs)
    for space, mean, square in ((both[0], m.x, m.xx), (both[1], m.y, m.yy)):
        if square <= (SPREAD * (space.shift + mean)) ** 2 * pairs:
            return None
    return m


def _rank_moments(
    a: Tensor, b: Tensor, both: tuple[_Space, _Space], cosine: bool
) -> _Moments | None:
    """Of mean ranks by bins, as reference.rsa states: count, then look up."""
    bins = reference.BINS
    edges = torch.full((2, 2 * bins), math.inf)
    starts = torch.empty(2, _CELLS, dtype=torch.uint16)
    ranks = torch.empty(2, bins)
    cells: list[tuple[int, int, int]] = []
    for i, (rows, space) in enumerate(zip((a, b), both, strict=True)):
        found = _edges(rows, cosine, space.scale)
        if found.std() <= SPREAD * found.mean():
            return None
        edges[i, : bins - 1] = found
        starts[i], *cell = _starts(found)
        cells.append((cell[0], cell[1], cell[2]))
    tables = (
        *(edges.data_ptr(), starts.data_ptr(), ranks.data_ptr(), bins, _CELLS, 2 * bins),
        *cells[0],
        *cells[1],
    )
    arguments = _arguments(both, cosine, shifted=False)
    counts = torch.empty(2, bins, dtype=torch.int64)
    _native.rsa_count(*arguments, *tables, counts.data_ptr())
    pairs = both[0].pairs
    for i in range(2):
        # From −½ to ½, about the mean rank.
        ranks[i] = (reference._mean_ranks(counts[i]) - (pairs + 1) / 2) / pairs
    sums = torch.empty(5, dtype=torch.float64)
    _native.rsa_rank_moments(*arguments, *tables, sums.data_ptr())
    return _Moments.of(sums, pairs)


def _edges(rows: Tensor, cosine: bool, scale: float) -> Tensor:
    """Quantiles of the distances between evenly spaced rows, as the kernel's float32 sees them."""
    sample = rows[:: -(-len(rows) // reference._SAMPLE)]
    found = reference._quantiles(
        reference._Space.of(sample.double() * scale, "cosine" if cosine else "euclidean")
    )
    # Equal distances, float32 noise apart, must fall on one side of an edge that equals them.
    return (found * (1 + 2.0**-20)).float()


def _starts(edges: Tensor) -> tuple[Tensor, int, int, int]:
    """How many edges lie below each cell of float patterns, the first cell, the bits of a cell,
    and a power of two above the number of edges in any cell."""
    first, last = (int(edges[i].view(torch.int32)) for i in (0, -1))
    drop = 0
    while (last >> drop) - (first >> drop) >= _CELLS:
        drop += 1
    base = first >> drop
    lowest = ((torch.arange(1, _CELLS) + base) << drop).clamp(max=_LARGEST)
    inner = torch.searchsorted(edges, lowest.to(torch.int32).view(torch.float32))
    ends = torch.cat([inner.new_zeros(1), inner, inner.new_tensor([len(edges)])])
    width = 1 << int(ends.diff().max()).bit_length()
    return ends[:-1].to(torch.uint16), base, drop, width
