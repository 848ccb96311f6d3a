"""How a search on a GPU goes: which rows it samples, how far it looks, how long its lists are.

The sample takes one row of each of `sample` stretches of the bank, at a place that a fixed hash
chooses. Every so-manyth row would not do: banks come in periodic order (class i mod 64), and such a
sample sees some classes and misses others, so that radii are too small or too large.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from robustft.backends.search import streaming

ROWS = 128  # lists and blocks come in multiples of a tile's rows

WORKSPACE = 1 << 30  # bytes
_SLOTS = (1 << 31) - 1  # of a block: kernels number them with 32 bits
_MOST = 1 << 28  # rows: kernels address their numbers with 32 bits

LEAST_SAMPLE, _LARGEST_SAMPLE = 1024, 32768  # rows
_FARTHER, _LONGER = 4, 16  # of the second try: rank and capacity


class Plan(NamedTuple):
    """How a search for k of N rows goes."""

    sample: int  # rows
    rank: int  # in the sample, of the radius
    capacity: int  # of a query's list

    def queries(self, count: int, device: torch.device, streamed: bool, every: bool) -> int:
        """Of a block, of all `count`; `knn` sorts 64-bit keys of all slots, which takes four of
        them a slot. Blocks are as even as full tiles allow: a short last one fills no card."""
        room = WORKSPACE
        if streamed:
            room = max(room, streaming.free_bytes(device) // 4)
        each = (40 if every else 8) * self.capacity + 4 * self.sample
        most = max(1, min(room // each, _SLOTS // self.capacity))
        most = most // ROWS * ROWS or most  # full tiles, and blocks at aligned addresses
        blocks = max(1, -(-count // most))
        return min(up(-(-count // blocks), ROWS), most)


@functools.cache
def plans(rows: int, k: int) -> tuple[Plan, ...]:
    """The plans to try, one after the other; none where screening has nothing to win (few rows, or
    k a large part of them), or no room.

    The number of sampled rows among the k nearest varies at most as a binomial one with mean
    x = k·m/N: rank x + 4·√x + 5 is beyond the k-th but for one query in a million. The number of
    all rows nearer than rank j of the sample is j·N/m, and less than (j + 4·√j + 10)·N/m as surely;
    an eighth is for what rounding adds. A sampled row costs its product and 8 bytes, a listed one
    about ten times as much: a sixty-fourth of the bank balances the two for k = N/1000.

    That holds for rows in any order which knows nothing of the hash, but not where many rows are
    equal, or nearly: the second plan looks at four times as many rows, with room for sixteen times.
    """
    if not 8 * LEAST_SAMPLE <= rows <= _MOST or k > rows // 32:
        return ()
    sample = min(max(rows // 64, LEAST_SAMPLE), _LARGEST_SAMPLE) // 64 * 64
    expected = k * sample / rows
    rank = math.ceil(expected + 4 * math.sqrt(expected) + 5)
    most = (rank + 4 * math.sqrt(rank) + 10) * rows / sample * 9 / 8
    return (
        Plan(sample, rank, up(min(math.ceil(most), rows), ROWS)),
        Plan(sample, min(_FARTHER * rank, sample), up(min(math.ceil(_LONGER * most), rows), ROWS)),
    )


@functools.lru_cache(maxsize=64)
def sampled(rows: int, count: int, device: torch.device) -> Tensor:
    """Numbers of the sampled rows [count], ascending, int64."""
    stretch = rows // count
    i = torch.arange(count, device=device)
    # The finish of MurmurHash3 in 32 bits.
    x = i * 0x9E3779B1 & 0xFFFFFFFF
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ x >> shift) * factor & 0xFFFFFFFF
    return i * stretch + ((x ^ x >> 16) * stretch >> 32)


def up(n: int, multiple: int) -> int:
    """n, or the next multiple."""
    return -(-n // multiple) * multiple
