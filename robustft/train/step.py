"""One optimiser step: the gradients of its batches, clipped, taken, and followed by averages."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustft.train import recompute, sharded, state
from robustft.train.average import Average
from robustft.train.batches import Batch
from robustft.train.config import Stage, TrainConfig
from robustft.train.method import Method


class Stepper:
    """Takes the steps of one stage, with an optimiser and an average of its own.

    module: what `method` trains in `stage`. Accelerate wraps it for mixed precision and several
    processes, or it is spread over these.

    Attributes: `optimizer`; `trained`, its parameters; `average`, of the weights, or None.
    """

    def __init__(
        self,
        method: Method,
        module: nn.Module,
        stage: Stage,
        config: TrainConfig,
        accelerator: Any,
        load: Path | None = None,
    ) -> None:
        """load: the checkpoint whose weights, moments and average the stage goes on from."""
        self.method, self.module = method, module
        self.config, self.accelerator = config, accelerator
        self._sharded = config.parallel == "fsdp"
        if load is not None:
            state.read_weights(load, module)
        if self._sharded:
            sharded.begin(module)
            self._called, self.optimizer = module, accelerator.prepare(self._adamw(stage))
        else:
            self._called, self.optimizer = accelerator.prepare(module, self._adamw(stage))
        self.average = None if config.ema is None else Average(module, config.ema)
        if load is not None:
            state.read_moments(load, self.optimizer, self.average)
        self.trained = [p for group in self.optimizer.param_groups for p in group["params"]]

    def __call__(self, batches: list[Batch], weights: list[float]) -> tuple[Tensor, dict[str, Any]]:
        """Take a step: its loss, and values for the log. weights: as of `gradients`."""
        loss, values = self.gradients(batches, weights)
        largest = self.config.grad_clip_norm
        if self._sharded:
            sharded.average_scalars(self.trained)
        if largest is not None:
            clip = sharded.clip_grad_norm if self._sharded else self.accelerator.clip_grad_norm_
            values["grad_norm"] = clip(self.trained, largest)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if not self.accelerator.optimizer_step_was_skipped:  # fp16: the scale was too large
            self.method.after_step(self.module)
            if self.average is not None:
                self.average.update()
        return loss, values

    def gradients(
        self, batches: list[Batch], weights: list[float]
    ) -> tuple[Tensor, dict[str, Any]]:
        """Gradients of the step's mean loss; its mean here, and the last pass's other values.

        weights: what the batches' losses count for among those of all processes.
        """
        accelerator = self.accelerator
        total = sum(len(batch["label"]) for batch in batches)
        mean = torch.zeros((), device=accelerator.device)
        values: dict[str, Any] = {}
        for number, (batch, weight) in enumerate(zip(batches, weights, strict=True), 1):
            batch = {name: t.to(accelerator.device, non_blocking=True) for name, t in batch.items()}
            waiting = number < len(batches)
            with accelerator.no_sync(self._called) if waiting else contextlib.nullcontext():
                # What accelerate prepares does so itself.
                cast = accelerator.autocast() if self._sharded else contextlib.nullcontext()
                with cast, recompute.chunked(self._called, self.config.grad_cache):
                    loss, values = self.method.loss(self._called, batch)
                share = len(batch["label"]) / total
                accelerator.backward(loss if weight == 1 else loss * weight)
            mean += loss.detach().float() * share
        return mean, dict(values)

    def _adamw(self, stage: Stage) -> torch.optim.Optimizer:
        config = self.config
        groups = self.method.param_groups(self.module, stage.wd)
        if config.decay_all:
            groups = [group | {"weight_decay": stage.wd} for group in groups]
        return torch.optim.AdamW(
            groups,
            lr=stage.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            # One call for all parameters: on small models the loop over them costs more.
            fused=self.accelerator.device.type in ("cpu", "cuda") and not self._sharded,
            foreach=False if self._sharded else None,  # not all of them are spread
        )
