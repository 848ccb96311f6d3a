"""What a run is told: `TrainConfig` for the whole run and `Stage` for one part of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from robustft.models.clip import AUTOCAST
from robustft.train import checks

#: Programs that keep a run's numbers, each with the extra that brings it.
TRACKERS = {"tensorboard": "train", "wandb": "wandb", "trackio": "trackio"}


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a run; names are those of open_clip's flags where it has one.

    epochs          passes over the training set in each end-to-end stage
    batch_size      images a process takes in one forward pass
    accum_freq      forward passes a step; losses are averaged, a contrastive loss sees the
                    negatives of its own pass only
    lr, wd          AdamW's learning rate and weight decay (decay on parameters with >= 2 dims)
    beta1, beta2, eps   AdamW's other settings
    decay_all       weight decay on every trained parameter
    warmup          steps of linear warm-up; from a run's length on it is cut to a tenth of the run,
    keep_warmup     unless this is set
    min_lr          where the cosine ends
    grad_clip_norm  largest norm of the gradient, None for no clipping
    ema             momentum of an average of the trained weights (robustft.train.average), which is
                    then what is validated and the result; None for the weights themselves
    precision       fp32, bf16 (= amp_bf16) or fp16 (= amp): autocast of the forward pass
    device          auto, or cpu even where an accelerator is present
    grad_cache      rows that pass through a tower at once, a part of the batch, which the
                    contrastive loss still sees whole (robustft.train.recompute); None for all
    grad_checkpointing   keep no activations within a transformer block: less memory, more time
    torchcompile    torch.compile of the towers
    parallel        of several processes: ddp, each has all weights, or fsdp, they are spread over
                    all (robustft.train.sharded)
    workers         loading processes; 0 loads in the main process; no influence on the result
    seed            fixes the order, the captions, the augmentation and every random mask
    val_frequency   validate every so many epochs (0: only at the end of a stage)
    save_frequency  checkpoint every so many epochs (0: never)
    save_steps      checkpoint also every so many steps of the run (0: never)
    save_minutes    checkpoint also when so many minutes have passed since the last (0: never)
    keep            how many checkpoints are kept
    log_frequency   a line of log.jsonl every so many steps
    select          last: the last step's weights are the result; best: those of the best
                    validation (needs a validation set)
    report_to       trackers that get the log too: tensorboard, wandb, trackio
    """

    epochs: int = 10
    batch_size: int = 64
    lr: float = 1e-5
    wd: float = 0.1
    warmup: int = 500
    min_lr: float = 0.0
    decay_all: bool = False
    keep_warmup: bool = False
    grad_clip_norm: float | None = None
    ema: float | None = None
    precision: str = "fp32"
    accum_freq: int = 1
    parallel: str = "ddp"
    workers: int = 0
    seed: int = 0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    device: str = "auto"
    val_frequency: int = 1
    save_frequency: int = 1
    save_steps: int = 0
    save_minutes: float = 10.0
    keep: int = 2
    log_frequency: int = 10
    select: str = "last"
    report_to: tuple[str, ...] = ()
    grad_cache: int | None = None
    grad_checkpointing: bool = False
    torchcompile: bool = False

    def __post_init__(self) -> None:
        checks.plain(self)
        for name in ("epochs", "batch_size", "accum_freq", "keep", "log_frequency"):
            checks.integer(name, getattr(self, name), least=1)
        for name in ("warmup", "workers", "seed", "val_frequency", "save_frequency", "save_steps"):
            checks.integer(name, getattr(self, name))
        checks.real("save_minutes", self.save_minutes, least=0)
        checks.real("lr", self.lr, above=0)
        checks.real("wd", self.wd, least=0)
        checks.real("min_lr", self.min_lr, least=0, most=self.lr)
        checks.real("beta1", self.beta1, least=0, below=1)
        checks.real("beta2", self.beta2, least=0, below=1)
        checks.real("eps", self.eps, above=0)
        if self.grad_clip_norm is not None:
            checks.real("grad_clip_norm", self.grad_clip_norm, above=0)
        if self.ema is not None:
            checks.real("ema", self.ema, least=0, below=1)
        checks.choice("precision", self.precision, AUTOCAST)
        checks.choice("device", self.device, ("auto", "cpu"))
        checks.choice("parallel", self.parallel, ("ddp", "fsdp"))
        checks.choice("select", self.select, ("last", "best"))
        if self.grad_cache is not None:
            checks.integer("grad_cache", self.grad_cache, least=1)
        for name in self.report_to:
            checks.choice("report_to", name, TRACKERS)
        for name in ("decay_all", "keep_warmup", "grad_checkpointing", "torchcompile"):
            checks.flag(name, getattr(self, name))

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> TrainConfig:
        """From a mapping; an unknown key is an InputError."""
        return checks.build(cls, values, what="the training configuration")

    def identity(self) -> dict[str, Any]:
        """The settings that a run must share with a checkpoint that it resumes from."""
        free = {
            "workers",
            "device",
            "val_frequency",
            "save_frequency",
            "save_steps",
            "save_minutes",
            "keep",
            "log_frequency",
            "report_to",
            "grad_cache",
            "grad_checkpointing",
            "torchcompile",
        }
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if name not in free}


@dataclass(frozen=True)
class Stage:
    """One part of a run, with its own optimiser and schedule.

    A stage with `frozen_features` trains on features that never change: they are computed once,
    before it begins, and the method's batches carry "features" in place of "image".
    """

    name: str
    epochs: int
    lr: float
    wd: float
    warmup: int
    min_lr: float = 0.0
    frozen_features: bool = False

    @classmethod
    def of(cls, name: str, config: TrainConfig, **changes: Any) -> Stage:
        """The stage that `config` describes, with `changes`."""
        given = {f: getattr(config, f) for f in ("epochs", "lr", "wd", "warmup", "min_lr")}
        return cls(name=name, **(given | changes))
