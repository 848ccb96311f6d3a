"""A pass over data that ranks share: each takes every W-th batch of it, and all get all rows.

The batches are those of one process, so that a row's features have its bits, whoever computes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from robustft.data.images import StoredImages
from robustft.ops._ranks import Ranks


class Share:
    """The part of rank `rank` among `size`. group: a torch.distributed ProcessGroup, or None for
    one process, which takes everything."""

    def __init__(self, group: Any = None) -> None:
        self._ranks = None if group is None else Ranks(group)
        self.rank, self.size = (
            (0, 1) if self._ranks is None else (self._ranks.rank, self._ranks.size)
        )

    def batches(self, count: int, batch_size: int) -> list[range]:
        """This rank's batches of 0 ... count - 1."""
        starts = range(self.rank * batch_size, count, self.size * batch_size)
        return [range(start, min(start + batch_size, count)) for start in starts]

    def rows(self, parts: Sequence[Tensor], count: int, batch_size: int) -> Tensor:
        """All `count` rows in order, on the CPU and on every rank. parts: [b, D] of one dtype on
        all ranks, float32 or int64: what this rank has of its batches. All ranks call together."""
        if self._ranks is None:
            return torch.cat([part.cpu() for part in parts])
        ranks = self._ranks
        # A rank without a batch does not know what a row is; the first rank has one.
        first = parts[0] if parts else torch.empty(0, 0)
        told = ranks.facts([first.shape[1], first.dtype.is_floating_point], ranks.device)
        width, floating = told[0]
        none = torch.empty(0, width, dtype=torch.float32 if floating else torch.int64)
        found = []
        for turn, start in enumerate(range(0, count, self.size * batch_size)):
            starts = range(start, start + self.size * batch_size, batch_size)
            counts = [min(max(count - start, 0), batch_size) for start in starts]
            mine = parts[turn] if turn < len(parts) else none
            found.append(ranks.gather(mine.to(ranks.device), counts).cpu())
        return torch.cat(found)

    def sum(self, value: Tensor) -> Tensor:
        """The sum over ranks of a tensor on the CPU, without a gradient."""
        if self._ranks is None:
            return value
        return self._ranks.sum(value.to(self._ranks.device)).cpu()

    def tell_damaged(self, dataset: Any) -> None:
        """Let every rank know of the images that any of them could not read."""
        if self._ranks is not None and isinstance(dataset.images, StoredImages):
            dataset.images.learn_damaged(self.sum(dataset.images.damaged.int()) > 0)


#: Of one process, which takes everything.
ALONE = Share()
