"""What a loss takes from all processes of a launch, with gradients; of one process, what it has."""

from __future__ import annotations

import torch
from torch import Tensor

from robustft.losses import all_ranks


def rows_of_all(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Each tensor's rows of all processes, in the order of ranks; gradients go back to each."""
    group = all_ranks()
    if group is None:
        return tensors
    from torch.distributed.nn.functional import all_gather

    return tuple(torch.cat(all_gather(t.contiguous(), group)) for t in tensors)


def mean_of_all(value: Tensor) -> Tensor:
    """The mean over all processes, the same on each.

    A part of a loss that is this mean counts as in one process, however much the images of each
    process count for (`robustft.train.order.Order.weights`).
    """
    group = all_ranks()
    if group is None:
        return value
    from torch.distributed.nn.functional import all_reduce

    return all_reduce(value, group=group) / group.size()


def draw(below: int, count: int) -> Tensor:
    """`count` random integers in [0, below): those that one process with the batches of all would
    draw for the rows of this one, which are as many on each. It takes `Method.same_draws`."""
    group = all_ranks()
    rank, world = (0, 1) if group is None else (group.rank(), group.size())
    return torch.randint(0, below, (world * count,))[rank * count : (rank + 1) * count]
