"""Linear probe: the head alone is trained, on the frozen image encoder's features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustft.methods.head import HeadModule, cross_entropy, train_head_only
from robustft.models import Classifier, Clip, copy_clip
from robustft.train import checks
from robustft.train.config import Stage, TrainConfig
from robustft.train.method import Method
from robustft.train.published import PUBLISHED


@dataclass(frozen=True)
class LinearProbeConfig:
    """init: the head starts as the zero-shot head or as zeros. cache: compute each image's
    features once, without augmentation; otherwise anew in every epoch, with it."""

    init: str = "zero-shot"
    cache: bool = True
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        checks.plain(self)
        checks.choice("init", self.init, ("zero-shot", "zeros"))
        checks.flag("cache", self.cache)
        checks.real("label_smoothing", self.label_smoothing, least=0, below=1)


class LinearProbe(Method):
    """min over W, b of CE(W·norm f0(x) + b, y)."""

    name = "linear-probe"
    display = "LP"
    colour = "#6b6b6b"
    baseline = True
    published = PUBLISHED["linear-probe"]
    head_from_text = False
    options = LinearProbeConfig

    def stages(self, config: TrainConfig) -> list[Stage]:
        return [Stage.of(self.name, config, frozen_features=self.config.cache)]

    def setup(self, clip: Clip, classnames: Sequence[str], templates: Sequence[Any]) -> nn.Module:
        return HeadModule(initial_head(clip, classnames, templates, self.config.init))

    def begin_stage(self, module: nn.Module, stage: int) -> None:
        assert isinstance(module, HeadModule)
        train_head_only(module)

    def train_mode(self, module: nn.Module) -> None:
        module.eval()  # the encoder is frozen, and so are its statistics

    def loss(self, module: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return cross_entropy(module, batch, self.config.label_smoothing)

    def classifier(self, module: nn.Module) -> Classifier:
        assert isinstance(module, HeadModule)
        return module.classifier


def initial_head(
    clip: Clip, classnames: Sequence[str], templates: Sequence[Any], init: str
) -> Classifier:
    """A classifier on a copy of `clip`; its head is the zero-shot head (bias zero) or all zeros."""
    classifier = Classifier.zero_shot(copy_clip(clip), classnames, templates)
    if init == "zeros":
        with torch.no_grad():
            classifier.head.weight.zero_()
            classifier.head.bias.zero_()
    return classifier
