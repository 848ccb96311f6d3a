"""The training loop, its schedule and its checkpoints.

`from robustft.train import TrainConfig, fit` trains any method of `robustft.methods`.
"""

from __future__ import annotations

from typing import Any

__all__ = ["Stage", "TrainConfig", "Trainer", "fit"]


def __getattr__(name: str) -> Any:
    # Lazy: the loop needs accelerate, the configuration does not.
    if name in ("Stage", "TrainConfig"):
        from robustft.train import config

        return getattr(config, name)
    if name in ("Trainer", "fit"):
        from robustft.train import loop

        return getattr(loop, name)
    raise AttributeError(f"module 'robustft.train' has no attribute {name!r}")
