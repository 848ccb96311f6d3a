"""LP-FT (arXiv 2202.10054): a linear probe first, then FT from the probe's head.

The probe brings the head close to its optimum, so that the first steps of end-to-end training no
longer distort the features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from robustft.methods.head import HeadModule, cross_entropy, train_head_only, train_image_encoder
from robustft.methods.linear_probe import initial_head
from robustft.models import Classifier, Clip
from robustft.train import checks
from robustft.train.config import Stage, TrainConfig
from robustft.train.method import Method
from robustft.train.published import PUBLISHED


@dataclass(frozen=True)
class LPFTConfig:
    """lp_epochs: the probe's epochs, None for as many as the second stage has. lp_lr, lp_wd: its
    learning rate and weight decay. init, cache: as for the linear probe. eval_mode: the second
    stage keeps the network in evaluation mode, as the release does (matters with batch norm)."""

    lp_epochs: int | None = None
    lp_lr: float = 0.1
    lp_wd: float = 0.0
    init: str = "zero-shot"
    cache: bool = True
    eval_mode: bool = True
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        checks.plain(self)
        if self.lp_epochs is not None:
            checks.integer("lp_epochs", self.lp_epochs, least=1)
        checks.real("lp_lr", self.lp_lr, above=0)
        checks.real("lp_wd", self.lp_wd, least=0)
        checks.choice("init", self.init, ("zero-shot", "zeros"))
        checks.flag("cache", self.cache)
        checks.flag("eval_mode", self.eval_mode)
        checks.real("label_smoothing", self.label_smoothing, least=0, below=1)


class LPFT(Method):
    """Stage 1: min over W, b on frozen features. Stage 2: min over θ, W, b from there."""

    name = "lp-ft"
    display = "LP-FT"
    colour = "#8c6d31"
    baseline = True
    published = PUBLISHED["lp-ft"]
    head_from_text = False
    options = LPFTConfig

    def stages(self, config: TrainConfig) -> list[Stage]:
        own = self.config
        probe = Stage.of(
            "lp",
            config,
            epochs=own.lp_epochs or config.epochs,
            lr=own.lp_lr,
            wd=own.lp_wd,
            min_lr=min(config.min_lr, own.lp_lr),
            frozen_features=own.cache,
        )
        return [probe, Stage.of("ft", config)]

    def setup(self, clip: Clip, classnames: Sequence[str], templates: Sequence[Any]) -> nn.Module:
        return HeadModule(initial_head(clip, classnames, templates, self.config.init))

    def begin_stage(self, module: nn.Module, stage: int) -> None:
        assert isinstance(module, HeadModule)
        (train_head_only, train_image_encoder)[stage](module)

    def train_mode(self, module: nn.Module) -> None:
        probing = not any(p.requires_grad for p in module.classifier.clip.parameters())  # type: ignore[union-attr]
        module.train(not (probing or self.config.eval_mode))

    def loss(self, module: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return cross_entropy(module, batch, self.config.label_smoothing)

    def classifier(self, module: nn.Module) -> Classifier:
        assert isinstance(module, HeadModule)
        return module.classifier
