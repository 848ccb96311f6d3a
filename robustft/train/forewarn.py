"""Mistakes that would only cost time, said before it is spent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from robustft.errors import warn
from robustft.optional import require
from robustft.train import fingerprint
from robustft.train.method import Method

#: From this factor on, up or down, a learning rate is another one than the method's own.
_FAR = 30.0


def learning_rate(method: Method, lr: float) -> None:
    """Warn of a rate far from the one that the method was published with."""
    own = method.published.lr
    if not own / _FAR <= lr <= own * _FAR:
        warn(f"lr: got {lr:g}, {method.name} was published with {own:g} for pre-trained CLIP")


def average(method: Method, steps: int, momentum: float | None = None) -> None:
    """Warn of a moving average that still holds mostly its start after `steps` steps: the method's
    own, or that of the run with `momentum`."""
    if momentum is None:
        momentum = getattr(method.config, "ema", None)
    if momentum is None or not steps > 0:
        return
    share = momentum**steps
    if share > 0.5:
        fitting = max(0.0, 1.0 - 5.0 / steps)
        warn(
            f"ema: after all {steps} steps {share:.0%} of the average with momentum {momentum:g} "
            f"is still the start, the zero-shot model; train longer, or take ema={fitting:.2g}"
        )


def memory(parameters: Iterable[Tensor], device: torch.device) -> None:
    """Warn where gradients and AdamW's two moments alone, in fp32, exceed the free memory."""
    need = 3 * 4 * sum(p.numel() for p in parameters)
    free = free_memory(device)
    if need > free:
        warn(
            f"memory: gradients and optimiser need {need / 1e9:.1f} GB, the activations more, and "
            f"{free / 1e9:.1f} GB are free; take a smaller model or r-adapter, or another device"
        )


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had on `device`."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(require("psutil", extra="train").virtual_memory().available)


def other_processes(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Say what becomes of a run whose checkpoint is of another number of processes."""
    if fingerprint.other_processes(before, now):
        warn(
            f"resume: the checkpoint is of {before['processes']} processes, and {now['processes']} "
            "go on with the same global batches: weights are from here on equal to those of an "
            "unbroken run but for rounding, and what is drawn for each image in the model "
            "(r-adapter's drop, dropout) is drawn anew"
        )


@torch.no_grad()
def unchanged(before: Any, after: Any, images: Any, device: Any) -> bool:
    """Whether two classifiers predict the same class for each of `images` (batches)."""
    return all(
        bool(torch.equal(before(x.to(device)).argmax(1), after(x.to(device)).argmax(1)))
        for x in images
    )
