"""Searches of a bank whose rows are spread over ranks.

The k nearest rows of all are among the min(k, N_r) nearest of each rank's N_r. The ranks take
turns: one sends a block of its queries to all, each finds its nearest, and the one merges what it
gets.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from robustft.errors import InputError
from robustft.ops._ranks import Ranks, expect_agreement, outside_graphs

_BLOCK = 1 << 22  # distances that are merged together
_DTYPES = (torch.float32, torch.float64)
_AGREED = (
    ("width of the queries", int),
    ("dtype of the queries and rows", _DTYPES.__getitem__),
    ("k", int),
)

# (queries [q, D], k) → this rank's distances [q, k], squared and ascending, and indices [q, k]
Search = Callable[[Tensor, int], tuple[Tensor, Tensor]]


@outside_graphs
def nearest_over_ranks(
    search: Search, queries: Tensor, count: int, k: int, ranks: Ranks
) -> tuple[Tensor, Tensor]:
    """([Q, k] squared distances ascending, [Q, k] indices) of this rank's queries among all rows.

    search: of this rank's `count` rows (not called where it has none). queries: float32 or float64.
    Rows are numbered in the order of ranks. Equal distances come in the order of their indices.
    """
    agreed = queries.shape[1], _DTYPES.index(queries.dtype), k
    facts = ranks.facts([len(queries), count, *agreed], queries.device)
    expect_agreement(_AGREED, [f[2:] for f in facts])
    counts = [f[1] for f in facts]
    if not 1 <= k <= sum(counts):
        raise InputError(f"k: got {k}, expected 1 to {sum(counts)}, the number of all ranks' rows")
    distances = queries.new_empty((len(queries), k))
    indices = queries.new_empty((len(queries), k), dtype=torch.int64)
    step = max(1, _BLOCK // (ranks.size * k))
    for turn in range(ranks.size):
        for start in range(0, facts[turn][0], step):
            rows = min(step, facts[turn][0] - start)
            mine = queries[start : start + rows] if turn == ranks.rank else None
            found = _of_all(search, _sent(mine, queries, rows, turn, ranks), count, k, turn, ranks)
            if found is not None:
                block = slice(start, start + rows)
                distances[block], indices[block] = _merged(*found, counts, k)
    return distances, indices


def _sent(mine: Tensor | None, like: Tensor, rows: int, turn: int, ranks: Ranks) -> Tensor:
    """Rank `turn`'s queries, on every rank."""
    block = like.new_empty((rows, like.shape[1])) if mine is None else mine.contiguous()
    dist.broadcast(block, group=ranks.group, group_src=turn)
    return block


def _of_all(
    search: Search, queries: Tensor, count: int, k: int, turn: int, ranks: Ranks
) -> tuple[list[Tensor], list[Tensor]] | None:
    """What each rank found, [q, k] with distances inf where it has fewer rows; on `turn` alone."""
    distances = queries.new_full((len(queries), k), torch.inf)
    indices = torch.zeros(distances.shape, dtype=torch.int64, device=queries.device)
    some = min(k, count)
    if some:
        distances[:, :some], indices[:, :some] = search(queries, some)
    answers = []
    for part in (distances, indices):
        parts = [torch.empty_like(part) for _ in range(ranks.size)] if turn == ranks.rank else None
        dist.gather(part, parts, group=ranks.group, group_dst=turn)
        answers.append(parts)
    if answers[0] is None or answers[1] is None:
        return None
    return answers[0], answers[1]


def _merged(
    distances: list[Tensor], indices: list[Tensor], counts: list[int], k: int
) -> tuple[Tensor, Tensor]:
    """The k nearest of all. Ranks follow each other: a stable sort keeps the order of indices."""
    first = 0
    kept = []
    for some, at, count in zip(distances, indices, counts, strict=True):
        has = min(k, count)
        # A query with NaN or Inf has indices −1 on every rank.
        kept.append((some[:, :has], torch.where(at[:, :has] < 0, -1, at[:, :has] + first)))
        first += count
    values, order = torch.cat([some for some, _ in kept], 1).sort(dim=1, stable=True)
    places = torch.cat([at for _, at in kept], 1)
    return values[:, :k], places.gather(1, order[:, :k])
