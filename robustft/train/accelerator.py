"""Accelerate, set up for one run at a time and let go of after it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from robustft.errors import InputError
from robustft.models.clip import AUTOCAST
from robustft.optional import require
from robustft.train.config import TrainConfig

#: Accelerate's names.
_KINDS = {None: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}


def make_accelerator(config: TrainConfig) -> Any:
    """An Accelerator for the configured device and precision; InputError where it cannot be."""
    accelerate = require("accelerate", extra="train")
    kind = _KINDS[AUTOCAST[config.precision]]
    try:
        accelerator = accelerate.Accelerator(cpu=config.device == "cpu", mixed_precision=kind)
    except ValueError as error:
        raise InputError(
            f"precision: got {config.precision}, expected one that runs here: {error}"
        ) from error
    if kind == "fp16" and accelerator.device.type == "cpu":
        # Accelerate would go on without a word, in fp32.
        forget(accelerator)
        raise InputError(f"precision: got {config.precision}, expected fp32 or bf16 on a CPU")
    return accelerator


def release(accelerator: Any, module: nn.Module, *, more: bool) -> None:
    """Undo `prepare`, so that the next stage (`more`) prepares the module anew.

    After the last stage the accelerator goes as a whole: emptying it first would only cost a pass
    of the garbage collector, a third of a second.
    """
    if more:
        accelerator.free_memory()
    for name in ("forward", "_original_forward", "_is_accelerate_prepared"):
        module.__dict__.pop(name, None)


def forget(accelerator: Any) -> None:
    """Let the next run choose its own device and precision, which accelerate keeps globally."""
    state = require("accelerate.state", extra="train")
    alone = accelerator.num_processes == 1
    state.AcceleratorState._reset_state(reset_partial_state=alone)


@contextlib.contextmanager
def state_for_trackers() -> Iterator[None]:
    """Accelerate's state, which its trackers ask for, where no run has one."""
    state = require("accelerate.state", extra="train").PartialState
    alone = not state._shared_state
    if alone:
        state(cpu=True)
    try:
        yield
    finally:
        if alone:
            state._reset_state()
