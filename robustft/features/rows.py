"""Rows that lie in files and are read where they are needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from robustft.models.tensor_files import read_tensors

#: In a shard's header: under which key its description stands. Its tensor of rows, and of images
#: which item of the data set each row is of (another one stands in for a damaged image).
KEY = "robustft.features"
VALUES, ITEMS = "values", "items"


class Indexed(Protocol):
    """What a tensor [n, D] and `Rows` share."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Tensor: ...


class Rows:
    """n rows in shards of `size` rows each, memory-mapped: a process holds those it reads.

    `rows[i]` is row i, [D], and `rows[indices]`, of an integer tensor, a copy of these, [b, D].
    A pickled one carries the files' names alone.
    """

    def __init__(self, paths: list[Path], count: int, size: int) -> None:
        self._paths, self._count, self._size = paths, count, size
        self._shards: dict[int, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int | Tensor) -> Tensor:
        if isinstance(index, int):
            return self._row(index)
        return torch.stack([self._row(i) for i in index.tolist()])

    def check(self) -> list[Path]:
        """Read all shards through; those that are damaged."""
        damaged = []
        for number, path in enumerate(self._paths):
            try:
                self._shard(number)
            except (OSError, ValueError):  # InputError is one
                damaged.append(path)
        return damaged

    def all(self) -> Tensor:
        """All rows, [n, D], in memory."""
        return torch.cat([self._shard(number)[VALUES] for number in range(len(self._paths))])

    def items(self) -> Tensor:
        """Of which item of the data set each row is, int64 [n]."""
        return torch.cat([self._shard(number)[ITEMS] for number in range(len(self._paths))])

    def _row(self, index: int) -> Tensor:
        if not 0 <= index < self._count:
            raise IndexError(f"row {index} of {self._count}")
        number, place = divmod(index, self._size)
        return self._shard(number)[VALUES][place]

    def _shard(self, number: int) -> dict[str, Tensor]:
        found = self._shards.get(number)
        if found is None:
            found = self._shards[number] = read_tensors(self._paths[number], KEY)
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_shards": {}}


class Unit:
    """Rows scaled to length 1 as they are read."""

    def __init__(self, rows: Indexed) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int | Tensor) -> Tensor:
        return F.normalize(self.rows[index], dim=-1)
