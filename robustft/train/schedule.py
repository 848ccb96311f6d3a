"""The learning rate over a stage: linear warm-up, then half a cosine."""

from __future__ import annotations

import math
from typing import Any

from robustft.errors import warn


def fit_warmup(warmup: int, steps: int) -> int:
    """Warm-up steps that fit into `steps`: a warm-up as long as the run becomes a tenth of it.

    The papers' 500 steps are meant for ImageNet; kept as they are, a short run would end before
    it had warmed up.
    """
    if warmup < steps or warmup == 0:
        return warmup
    shorter = steps // 10
    warn(f"warmup: {warmup} steps do not fit a run of {steps}, so {shorter} (unless keep_warmup)")
    return shorter


def cosine(step: int, *, lr: float, warmup: int, steps: int, min_lr: float = 0.0) -> float:
    """The learning rate of step `step` in 0 ... steps - 1.

    Step w < warmup has lr·(w + 1)/warmup; then
    min_lr + (lr - min_lr)·½(1 + cos(π·(step - warmup)/(steps - warmup))).
    """
    if step < warmup:
        return lr * (step + 1) / warmup
    part = min(1.0, (step - warmup) / max(1, steps - warmup))
    return min_lr + (lr - min_lr) * 0.5 * (1.0 + math.cos(math.pi * part))


def set_rate(optimizer: Any, lr: float) -> None:
    """Let every parameter of `optimizer` learn at `lr` from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = lr
