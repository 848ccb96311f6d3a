"""The state of training as safetensors and plain numbers: reading it can run no code.

Accelerate's own format is not used, since it pickles optimiser, schedule and random states. The
schedule and the random states need no place in a checkpoint: both are functions of the step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustft.errors import InputError
from robustft.optional import require
from robustft.train import average, sharded

WEIGHTS = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
FILES = (WEIGHTS, OPTIMIZER)
AVERAGE = average.FILE  # where weights are averaged


def write(
    folder: Path, module: nn.Module, optimizer: Any, averaged: average.Average | None = None
) -> None:
    """Write the weights and buffers of `module`, the moments of `optimizer` and the average."""
    safetensors = require("safetensors.torch", extra="openclip")
    safetensors.save_model(module, str(folder / WEIGHTS))
    state = optimizer.state_dict()["state"]
    tensors = {
        f"{index}.{name}": torch.as_tensor(value).detach().cpu().contiguous()
        for index, values in state.items()
        for name, value in values.items()
        if value is not None
    }
    safetensors.save_file(tensors, str(folder / OPTIMIZER))
    if averaged is not None:
        averaged.write(folder)


def read_weights(folder: Path, module: nn.Module) -> None:
    """Put the weights and buffers that `write` wrote into the same module.

    Errors: InputError when names or shapes are others, or the file is no safetensors file.
    """
    safetensors = require("safetensors.torch", extra="openclip")
    with _readable(folder):
        safetensors.load_model(module, str(folder / WEIGHTS))


def read_moments(folder: Path, optimizer: Any, averaged: average.Average | None = None) -> None:
    """Put the moments that `write` wrote into the same optimiser, whose settings are those it was
    made with, and the average. Errors: as of `read_weights`."""
    safetensors = require("safetensors.torch", extra="openclip")
    with _readable(folder):
        tensors = safetensors.load_file(str(folder / OPTIMIZER))
        optimizer.load_state_dict(
            {
                "state": _moments(tensors, _parameters(optimizer)),
                "param_groups": optimizer.state_dict()["param_groups"],
            }
        )
        if averaged is not None:
            averaged.read(folder)


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, InputError):
        raise
    except Exception as error:
        raise InputError(f"checkpoint {folder} cannot be loaded: {error}") from error


def _parameters(optimizer: Any) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _moments(tensors: dict[str, Tensor], parameters: list[Tensor]) -> dict[int, dict[str, Tensor]]:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        parameter = parameters[int(index)]
        if value.ndim:
            if value.shape != parameter.shape:
                raise InputError(
                    f"{OPTIMIZER}: {key} is {list(value.shape)}, expected {list(parameter.shape)}"
                )
            # With the parameter's strides, which fused kernels take for granted.
            if sharded.is_spread(parameter):
                value = sharded.like(parameter, value)
            else:
                value = torch.empty_like(parameter, dtype=value.dtype, device="cpu").copy_(value)
        state.setdefault(int(index), {})[name] = value
    return state
