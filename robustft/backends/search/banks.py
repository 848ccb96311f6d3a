"""Banks of a search on a GPU: packed block by block, on the device or streamed from the host."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from robustft.backends.search import plans, streaming
from robustft.backends.search.interface import Lists, SearchKernels
from robustft.backends.search.packing import (
    LEVEL,
    LOWEST,
    NEAR,
    NORM,
    RESIDUAL,
    SCALE,
    SHARE,
    TINY,
    Packed,
    padded,
    slack_of,
)
from robustft.backends.search.plans import ROWS, Plan, up
from robustft.backends.tensors import unit_stride

CHUNK: int | None = None  # rows; None: as memory allows. A number streams any bank (tests).

_BLOCK = 8192  # rows that are packed at a time: 100 MB of float64 at D = 512


def pack(rows: Tensor, steps: SearchKernels, device: torch.device) -> list[Tensor]:
    """[mean [D], halves, numbers] where the rows are; the work is done on `device`, by blocks."""
    count, dim = rows.shape
    total = torch.zeros(dim, dtype=torch.float64, device=device)
    for part in slices(count, _BLOCK):
        total += rows[part].to(device).double().sum(0)
    mean = (total / count).to(rows.dtype)
    packed = padded(count, dim, rows.device)
    for part in slices(count, _BLOCK):
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


class Bank:
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


def slices(length: int, step: int) -> Iterator[slice]:
    """The parts of a range."""
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))
