"""Training whose weights, gradients and moments are spread over the processes: fully_shard.

torch's fully_shard (FSDP2) cuts every parameter along its first dimension; the blocks of a tower
are put together one by one while they run. A single number, CLIP's logit scale, cannot be cut: it
stays whole on every process, and its gradients are averaged here. Validation, the result
and checkpoints, which have the same form as of whole training, are of a whole copy.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from robustft.errors import InputError
from robustft.train.config import TrainConfig
from robustft.train.method import Method
from robustft.train.recompute import ENCODERS, models_in


def check(method: Method, config: TrainConfig, processes: int) -> None:
    """Errors: InputError where the configuration shards what cannot be sharded."""
    if config.parallel != "fsdp":
        return
    if processes < 2:
        raise InputError("parallel: got fsdp on one process, expected several (torchrun) or ddp")
    if not method.shardable:
        raise InputError(
            f"parallel: got fsdp, but {method.name} needs whole weights in training; expected ddp"
        )
    others = {
        "ema": config.ema is not None,
        "precision fp16": config.precision in ("fp16", "amp"),
        "grad_cache": config.grad_cache is not None,
        "grad_checkpointing": config.grad_checkpointing,
        "torchcompile": config.torchcompile,
    }
    for name, asked in others.items():
        if asked:
            raise InputError(f"parallel: got fsdp with {name}, expected one of them")


def begin(module: nn.Module) -> None:
    """Spread the parameters of `module` over all processes."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    # Nothing here changes in place what a module returns.
    warnings.filterwarnings("ignore", message=".*FSDP2-wrapped module .* returned a view tensor")
    device = next(module.parameters()).device.type
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    scalars = {p for p in module.parameters() if p.numel() == 1}

    def shard(part: nn.Module) -> None:
        fully_shard(part, mesh=mesh, ignored_params=scalars & set(part.parameters()))

    for model in models_in(module):
        for part in reversed(list(model.modules())):  # the innermost first
            if isinstance(part, nn.ModuleList | nn.Sequential):
                for block in part:
                    if sum(1 for _ in block.parameters()) > 2:  # more than one layer
                        shard(block)
        shard(model)
        for name in ENCODERS:
            register_fsdp_forward_method(model, name)
    shard(module)


def is_spread(tensor: Tensor) -> bool:
    """Whether a tensor is spread over the processes."""
    return hasattr(tensor, "full_tensor")


def whole_of(tensor: Tensor) -> Tensor:
    """A tensor that may be spread over the processes, which then call together, as a whole."""
    full: Tensor = tensor.full_tensor() if is_spread(tensor) else tensor  # type: ignore[attr-defined]
    return full


def local_of(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that may be spread over the processes."""
    part: Tensor = tensor.to_local() if is_spread(tensor) else tensor  # type: ignore[attr-defined]
    return part


def like(tensor: Tensor, whole: Tensor) -> Tensor:
    """`whole`, spread as `tensor` is."""
    from torch.distributed.tensor import distribute_tensor

    spread: Any = tensor
    return distribute_tensor(whole.to(tensor.device), spread.device_mesh, spread.placements)


class Gathered:
    """An optimiser whose `state_dict` has whole tensors, for a checkpoint. All processes call
    together."""

    def __init__(self, optimizer: Any, *, keep: bool) -> None:
        found = {}
        for number, values in optimizer.state_dict()["state"].items():
            whole = {name: whole_of(value) for name, value in values.items()}
            if keep:  # on one process
                found[number] = {name: value.cpu() for name, value in whole.items()}
        self._state = {"state": found}

    def state_dict(self) -> dict[str, Any]:
        return self._state


@torch.no_grad()
def average_scalars(parameters: Iterable[Tensor]) -> None:
    """Give every process the mean gradient of what is not spread."""
    for parameter in parameters:
        if parameter.grad is not None and not is_spread(parameter):
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()


@torch.no_grad()
def clip_grad_norm(parameters: Iterable[Tensor], largest: float) -> Tensor:
    """As torch.nn.utils.clip_grad_norm_, of parameters some of which are spread."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    share = 1 / dist.get_world_size()  # of what every process has
    parts = [local_of(g).square().sum() * (1.0 if is_spread(g) else share) for g in gradients]
    total = torch.stack(parts).sum()
    dist.all_reduce(total)
    norm = total.sqrt()
    factor = (largest / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        local_of(gradient).mul_(factor)
    return norm
