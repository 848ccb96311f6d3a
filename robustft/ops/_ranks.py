"""What the processes of a group tell each other (torch.distributed), for ops over ranks."""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from robustft.errors import InputError, InputTypeError

_F = TypeVar("_F", bound=Callable[..., Any])


def outside_graphs(function: _F) -> _F:
    """torch.compiler.disable, at the first call: what ranks tell each other is in no graph.

    As a decorator it would import torch's compiler with robustft, which takes seconds.
    """

    outside: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        if not outside:
            outside.append(torch.compiler.disable(function))
        return outside[0](*args, **options)

    return call  # type: ignore[return-value]


class Ranks:
    """This process among those of a group. All of them call the same methods in the same order.

    group: a torch.distributed.ProcessGroup that this process is a member of.
    Errors: InputTypeError or InputError for what is none.
    """

    def __init__(self, group: Any) -> None:
        if not dist.is_available() or not isinstance(group, dist.ProcessGroup):
            raise InputTypeError(
                f"group: got {type(group).__name__}, expected a torch.distributed.ProcessGroup"
            )
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            raise InputError("group: got one without this process, expected one with it")

    @property
    def device(self) -> torch.device:
        """Where the group's engine takes tensors from: the CPU, or this process's GPU."""
        return torch.device("cpu" if "gloo" in dist.get_backend(self.group) else "cuda")

    def facts(self, numbers: list[int], device: torch.device) -> list[list[int]]:
        """The numbers of every rank, as many from each. On a GPU this waits for the device."""
        mine = torch.tensor(numbers, dtype=torch.int64, device=device)
        return [part.tolist() for part in self._gather(mine)]

    def gather(self, rows: Tensor, counts: list[int]) -> Tensor:
        """The rows of all ranks, in the order of the ranks, of which rank r has counts[r]."""
        most = max(counts)
        mine = rows.contiguous()
        if len(rows) < most:
            mine = rows.new_zeros((most, *rows.shape[1:]))
            mine[: len(rows)] = rows
        parts = self._gather(mine)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def sum_of_mine(self, rows: Tensor, counts: list[int]) -> Tensor:
        """The sum over all ranks of `rows` (those of every rank, as `gather` puts them), of which
        this rank gets its own; float32 or float64."""
        if dist.get_backend(self.group) == "nccl":  # which alone sends no more than is wanted
            most = max(counts)
            padded = rows.new_zeros((self.size, most, rows.shape[1]))
            for place, part in zip(padded, rows.split(counts), strict=True):
                place[: len(part)] = part
            mine = torch.empty_like(padded[0])
            dist.reduce_scatter_tensor(mine, padded, group=self.group)
            return mine[: counts[self.rank]]
        return self.sum(rows).split(counts)[self.rank]

    def pass_on(self, given: list[Tensor], shapes: list[tuple[int, ...]]) -> list[Tensor]:
        """Send tensors to the next rank; what the one before sends, of these shapes and the same
        dtypes. The ranks form a ring."""
        if self.size == 1:
            return given
        found = [x.new_empty(shape) for x, shape in zip(given, shapes, strict=True)]
        after, before = (self.rank + 1) % self.size, (self.rank - 1) % self.size
        # As bytes: not every engine knows every dtype.
        calls = [
            dist.P2POp(call, x.view(torch.uint8), group=self.group, group_peer=peer)
            for call, tensors, peer in (
                (dist.isend, [x.contiguous() for x in given], after),
                (dist.irecv, found, before),
            )
            for x in tensors
        ]
        for work in dist.batch_isend_irecv(calls):
            work.wait()
        return found

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all ranks, without a gradient."""
        total = value.detach().clone()
        dist.all_reduce(total, group=self.group)
        return total

    def _gather(self, mine: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        # As bytes: not every engine knows every dtype.
        send = [part.view(torch.uint8) for part in parts]
        dist.all_gather(send, mine.view(torch.uint8), group=self.group)
        return parts


# What ranks must agree on: a name, and what its number stands for.
Agreed = tuple[str, Callable[[int], object]]


def expect_agreement(agreed: tuple[Agreed, ...], facts: list[list[int]]) -> None:
    """InputError, the same on every rank, where ranks do not say the same of the things named."""
    for number, values in enumerate(facts):
        for (name, means), value, first in zip(agreed, values, facts[0], strict=True):
            if value != first:
                raise InputError(
                    f"{name}: got {means(value)} on rank {number}, expected {means(first)} as on "
                    "rank 0"
                )


def as_int(value: float) -> int:
    """The bits of a float as an integer, for `Ranks.facts`; equal for equal numbers."""
    return int(struct.unpack("<q", struct.pack("<d", value + 0.0))[0])


def as_float(bits: int) -> float:
    """The float of `as_int`."""
    return float(struct.unpack("<d", struct.pack("<q", bits))[0])


class TotalOverRanks(torch.autograd.Function):
    """Σ over the ranks of a value that each has a part of: the same on all of them.

    The gradient of a part is W times that of the sum (W ranks), so that DistributedDataParallel,
    which takes the mean over ranks, ends at the gradient of the sum.
    """

    @staticmethod
    def forward(ctx: Any, part: Tensor, ranks: Ranks) -> Tensor:
        ctx.size = ranks.size
        return ranks.sum(part)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.size, None
