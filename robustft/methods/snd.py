"""SnD (ECCV 2024) for one task: the image encoder stays near the frozen one on reference images.

SnD distils from two teachers, the pre-trained model and that of the previous task. At the first
task they are one model, so that its weight w = σ(6·(|z_pre - z_prev| - 0.2)) is σ(-1.2) throughout,
and 9·w + 0.5·(1 - w) is the weight λ of one distance. With u_j = norm f(x_j) - norm f0(x_j) on
reference images,

    SnD         L = CE     + λ · mean_j |u_j|            the release
    FLYP+SnD    L = L_FLYP + λ · mean_j |u_j|²           as DiVE's paper describes it: u = 0

The captions of the reference pairs are not used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from robustft.methods.flyp import FLYP, FLYPConfig
from robustft.methods.frozen import Anchored, frozen_images, unit
from robustft.methods.ft import FT, FTConfig
from robustft.methods.head import cross_entropy, cross_entropy_of
from robustft.methods.linear_probe import initial_head
from robustft.methods.over_ranks import mean_of_all
from robustft.methods.towers import TwoTowers
from robustft.models import Clip, copy_clip, evaluating
from robustft.train import checks
from robustft.train.published import PUBLISHED

_W = 1 / (1 + math.exp(6 * 0.2))
#: The release's weights of its two teachers, put together: 2.468.
ONE_TEACHER = 9 * _W + 0.5 * (1 - _W)


@dataclass(frozen=True)
class SnDConfig(FTConfig):
    """lambda_: weight λ of the distance; 0 is FT. reference_batch_size: reference images a forward
    pass, None for the batch size."""

    lambda_: float = ONE_TEACHER
    reference_batch_size: int | None = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self)


@dataclass(frozen=True)
class FLYPSnDConfig(FLYPConfig):
    """lambda_: weight λ of the squared distance; 0 is FLYP. reference_batch_size: as for SnD."""

    lambda_: float = 1000.0
    reference_batch_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self)


def _check(config: Any) -> None:
    checks.real("lambda_", config.lambda_, least=0)
    if config.reference_batch_size is not None:
        checks.integer("reference_batch_size", config.reference_batch_size, least=1)


class SnDModule(Anchored):
    """A classifier whose encoder also sees reference images."""

    def forward(
        self,
        image: Tensor | None = None,
        features: Tensor | None = None,
        ref_image: Tensor | None = None,
        ref_before: Tensor | None = None,
    ) -> Any:
        """Logits, as a HeadModule; with `ref_image`: and the u_j [B', D]."""
        logits = super().forward(image, features)
        if ref_image is None:
            return logits
        return logits, moves(self.classifier.clip, self.original, ref_image, ref_before)


class SnDTowers(TwoTowers):
    """Both towers, whose image encoder also sees reference images."""

    def __init__(self, clip: Clip, original: Clip, classnames: Any, templates: Any) -> None:
        super().__init__(clip, classnames, templates)
        self._original = (original,)  # in a tuple: no part of the module's state

    def forward(  # type: ignore[override]
        self,
        image: Tensor,
        text: Tensor,
        ref_image: Tensor | None = None,
        ref_before: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Unit features [B, D] of the target pairs, the scale; with `ref_image`: and the u_j."""
        target = super().forward(image, text)
        if ref_image is None:
            return target
        return (*target, moves(self.model, self._original[0], ref_image, ref_before))


def moves(model: Any, original: Clip, image: Tensor, before: Tensor | None) -> Tensor:
    """u [B', D]: by how much the unit features of images have moved; the tuned encoder is run in
    evaluation mode. before: the frozen model's raw features, where they are known."""
    with evaluating(model):
        now = unit(model.encode_image(image))
    return now - unit(frozen_images(original, image) if before is None else before)


class SnD(FT):
    """min over θ, W, b of CE + λ · mean |u|."""

    name = "snd"
    display = "SnD"
    colour = "#4d7c0f"
    baseline = False
    group = "regularised"
    published = PUBLISHED["snd"]
    options = SnDConfig
    needs_reference = True
    reference_features = ("image",)

    def setup(self, clip: Clip, classnames: Sequence[str], templates: Sequence[Any]) -> nn.Module:
        return SnDModule(initial_head(clip, classnames, templates, "zero-shot"), clip)

    def loss(self, module: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        if self.config.lambda_ == 0:
            return cross_entropy(module, batch, self.config.label_smoothing)
        logits, u = module(image=batch["image"], **_reference(batch))
        loss, values = cross_entropy_of(logits, batch["label"], self.config.label_smoothing)
        distance = mean_of_all(u.norm(dim=1).mean())
        return loss + self.config.lambda_ * distance, values | {"distance": distance.detach()}


class FLYPSnD(FLYP):
    """min over θ, φ, s of L_FLYP + λ · mean |u|²."""

    name = "flyp-snd"
    display = "FLYP+SnD"
    colour = "#708238"
    baseline = False
    group = "regularised"
    demo = {"lambda_": 10.0}  # noqa: RUF012 (as DiVE's, which it shares)
    published = PUBLISHED["flyp-snd"]
    options = FLYPSnDConfig
    needs_reference = True
    reference_features = ("image",)

    def setup(self, clip: Clip, classnames: Sequence[str], templates: Sequence[Any]) -> nn.Module:
        return SnDTowers(copy_clip(clip), clip, classnames, templates)

    def loss(self, module: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        if self.config.lambda_ == 0:
            return super().loss(module, batch)
        image, text, scale, u = module(
            image=batch["image"], text=batch["text"], **_reference(batch)
        )
        contrastive = self.contrast(image, text, scale, batch["label"])
        distance = u.square().sum(dim=1).mean()
        values = {"contrastive": contrastive.detach(), "distance": distance.detach()}
        return contrastive + self.config.lambda_ * distance, values


def _reference(batch: dict[str, Tensor]) -> dict[str, Any]:
    return {"ref_image": batch["ref_image"], "ref_before": batch.get("ref_image_pretrained")}
