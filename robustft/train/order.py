"""Which samples make up which step: a pure function of the seed, so that a run can be resumed.

Nothing here has a state. Step k of a run always takes the same samples in the same order, however
often the run was stopped before it, and however many workers load.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from robustft.errors import InputError


def mix(*parts: int | str) -> int:
    """A seed in [0, 2^63) that depends on every part; equal on every machine."""
    text = "/".join(map(str, parts))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def permutation(n: int, *seed: int | str) -> Tensor:
    """A random order of 0 ... n - 1, int64 [n]."""
    generator = torch.Generator().manual_seed(mix(*seed))
    return torch.randperm(n, generator=generator)


@dataclass(frozen=True)
class Order:
    """How `n` samples are dealt into batches, `accum` of them a step, over `world` processes.

    All processes together take `batch_size` × `world` samples a batch, the same whatever `world`
    is. With `drop_last` the incomplete batch at the end of an epoch is left out, unless it is the
    only one; else the processes share it as evenly as it goes. Epochs are counted from
    `first_epoch`, so that a later stage of a run sees new draws.
    """

    n: int
    batch_size: int
    accum: int = 1
    seed: int = 0
    drop_last: bool = False
    rank: int = 0
    world: int = 1
    first_epoch: int = 0
    what: str = "the training set"  # in errors

    def __post_init__(self) -> None:
        if self.n < 1:
            raise InputError(f"{self.what}: got no sample, expected at least one")
        if self.world > 1 and self.n < self.batch_size * self.world:
            raise InputError(
                f"batch_size: got {self.batch_size} on {self.world} processes for {self.n} samples "
                f"in {self.what}, expected {self.batch_size * self.world} or more"
            )

    @property
    def batches_per_epoch(self) -> int:
        """Forward passes a process makes in one epoch."""
        whole, rest = divmod(self.n, self.batch_size * self.world)
        keeps_rest = rest > 0 and (whole == 0 or not self.drop_last)
        return whole + keeps_rest

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in one epoch; the last may have fewer than `accum` batches."""
        return -(-self.batches_per_epoch // self.accum)

    def passes(self, step: int) -> int:
        """Forward passes of step number `step`."""
        place = (step % self.steps_per_epoch) * self.accum
        return min(self.accum, self.batches_per_epoch - place)

    def passes_before(self, step: int) -> int:
        """Forward passes of all steps before number `step`."""
        epochs, place = divmod(step, self.steps_per_epoch)
        return epochs * self.batches_per_epoch + place * self.accum

    def batch(self, epoch: int, number: int, order: Tensor | None = None) -> Tensor:
        """Indices of batch `number` of `epoch` on this process, int64 [<= batch_size]."""
        if order is None:
            order = self.of_epoch(epoch)
        # A process without a sample passes another's, which weighs nothing (`weights`): all must
        # take part in what the processes tell each other.
        mine = self._mine(number) or self._rows(number)[:1]
        return order[mine.start : mine.stop]

    def weights(self, step: int) -> list[float]:
        """What the mean loss of each batch of step number `step` on this process counts for, so
        that the mean of all processes' gradients is that of the mean over the step's samples."""
        first = (step % self.steps_per_epoch) * self.accum
        numbers = range(first, first + self.passes(step))
        total = sum(len(self._rows(number)) for number in numbers)
        return [len(self._mine(number)) * self.world / total for number in numbers]

    def _rows(self, number: int) -> range:
        """The places in an epoch's order of batch `number`, of all processes."""
        size = self.batch_size * self.world
        return range(number * size, min((number + 1) * size, self.n))

    def _mine(self, number: int) -> range:
        """This process's part of `_rows`, of which the first ones get the more."""
        rows = self._rows(number)
        start, stop = (-(-len(rows) * end // self.world) for end in (self.rank, self.rank + 1))
        return range(rows.start + start, rows.start + stop)

    def of_epoch(self, epoch: int) -> Tensor:
        """The order of all samples in `epoch`, int64 [n]."""
        return permutation(self.n, self.seed, "order", epoch)

    def steps(self, start: int, stop: int) -> Iterator[tuple[int, list[Tensor]]]:
        """(epoch, the batches' indices) of the steps from `start` up to `stop`."""
        epoch, order = -1, torch.empty(0)
        for step in range(start, stop):
            passed, place = divmod(step, self.steps_per_epoch)
            now = self.first_epoch + passed
            if now != epoch:
                epoch, order = now, self.of_epoch(now)
            first = place * self.accum
            numbers = range(first, first + self.passes(step))
            yield epoch, [self.batch(epoch, number, order) for number in numbers]
