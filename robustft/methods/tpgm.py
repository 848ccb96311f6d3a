"""TPGM (arXiv 2303.10720) during training: after each step the encoder is pulled into its radii.

FT, and after each step for every tensor l of the image encoder

    θ_l ← θ0_l + min(1, γ_l / N(θ_l - θ0_l)) · (θ_l - θ0_l)

where the radii γ have just taken a step of Adam along the cross-entropy of a validation batch. The
head is free. Radii learnt once, after training: robustft.ensemble.tpgm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustft.ensemble.tpgm import NORMS, RadiiAdam, distances, learn, projected
from robustft.methods.frozen import unwrapped
from robustft.methods.ft import FT, FTConfig
from robustft.methods.head import HeadModule, cross_entropy, image_encoder
from robustft.methods.linear_probe import initial_head
from robustft.methods.over_ranks import mean_of_all
from robustft.models import Classifier, Clip, evaluating
from robustft.train import checks
from robustft.train.published import PUBLISHED


@dataclass(frozen=True)
class TPGMConfig(FTConfig):
    """norm: N, "mars" or "l2". iterations: steps of the radii after each training step, 0 for FT.
    proj_lr: their rate."""

    norm: str = "mars"
    iterations: int = 1
    proj_lr: float = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.choice("norm", self.norm, NORMS)
        checks.integer("iterations", self.iterations)
        checks.real("proj_lr", self.proj_lr, above=0)


class ProjectedModule(HeadModule):
    """A classifier, the radii of its encoder's tensors, and the validation batch at hand."""

    def __init__(self, classifier: Classifier, original: Clip) -> None:
        super().__init__(classifier)
        self._original = (original,)  # in a tuple: no part of the module's state
        self.batch: tuple[Tensor, Tensor] | None = None
        self.names = [
            f"clip.visual.{n}" for n, _ in image_encoder(classifier.clip).named_parameters()
        ]
        self.radii = RadiiAdam(len(self.names))

    def project(self, config: TPGMConfig) -> None:
        """Let the radii take their steps, and put the encoder within them."""
        assert self.batch is not None
        tuned = list(image_encoder(self.classifier.clip).parameters())
        start = list(image_encoder(self._original[0].model).parameters())
        lengths = distances(start, tuned, config.norm)
        self.radii.begin(lengths)
        with evaluating(self.classifier):
            for _ in range(config.iterations):
                learn(
                    self.radii,
                    self.classifier,
                    self.names,
                    start,
                    tuned,
                    lengths,
                    self.batch,
                    config.proj_lr,
                    mean_of_all,
                )
        with torch.no_grad():
            within = projected(start, tuned, self.radii.radius, lengths)
            for value, new in zip(tuned, within, strict=True):
                value.copy_(new)
        self.batch = None


class TPGM(FT):
    """min over θ, W, b of CE, θ within radii γ; min over γ of CE on validation data."""

    name = "tpgm"
    display = "TPGM"
    colour = "#00697a"
    baseline = False
    group = "regularised"
    published = PUBLISHED["tpgm"]
    options = TPGMConfig
    shardable = False
    needs_validation = True

    def setup(self, clip: Clip, classnames: Sequence[str], templates: Sequence[Any]) -> nn.Module:
        return ProjectedModule(initial_head(clip, classnames, templates, "zero-shot"), clip)

    def loss(self, module: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        if "val_image" in batch:
            unwrapped(module).batch = batch["val_image"], batch["val_label"]
        return cross_entropy(module, batch, self.config.label_smoothing)

    def after_step(self, module: nn.Module) -> None:
        assert isinstance(module, ProjectedModule)
        if self.config.iterations > 0:
            module.project(self.config)
