"""What a backend's kernels do in a search on a GPU, and the lists that they fill."""

from __future__ import annotations

import abc
from typing import NamedTuple

import torch
from torch import Tensor

from robustft.backends.search.packing import (
    LARGEST,
    NORM,
    RESIDUAL,
    SCALE,
    SQUARE,
    TINY,
    WIDER,
    Packed,
)

RADIUS, REACH, FLOOR = range(3)  # fields of the aims


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
    2t and floor of (2) in screening.py. b·capacity is below 2³¹, N at most 2²⁸.
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
