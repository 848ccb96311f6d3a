"""FLYP with replay: the contrastive loss on reference pairs beside that on the target data.

    L = L_FLYP(target batch) + λ · L_FLYP(reference batch)

DiVE's paper (arXiv 2511.09973) compares with this in place of ARF, whose anchors need a captioner
and retrieval: it too keeps the contrastive loss on general image-text pairs going.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from robustft.losses import CLIPLoss, all_ranks
from robustft.methods.flyp import FLYP, FLYPConfig
from robustft.methods.towers import TwoTowers
from robustft.models import Clip, copy_clip
from robustft.train import checks
from robustft.train.published import PUBLISHED


@dataclass(frozen=True)
class FLYPReplayConfig(FLYPConfig):
    """lambda_: weight λ of the loss on reference pairs; 0 is FLYP. reference_batch_size: pairs a
    forward pass, None for the batch size."""

    lambda_: float = 1.0
    reference_batch_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.real("lambda_", self.lambda_, least=0)
        if self.reference_batch_size is not None:
            checks.integer("reference_batch_size", self.reference_batch_size, least=2)


class ReplayTowers(TwoTowers):
    """Both towers, for target and reference pairs in one forward."""

    def forward(  # type: ignore[override]
        self,
        image: Tensor,
        text: Tensor,
        ref_image: Tensor | None = None,
        ref_text: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Unit features [B, D] of the target pairs, the scale, and unit features [B', D] of the
        reference pairs where there are any."""
        target = super().forward(image, text)
        if ref_image is None or ref_text is None:
            return target
        return (*target, *self.encode(ref_image, ref_text))


class FLYPReplay(FLYP):
    """min over θ, φ, s of L_FLYP(target) + λ · L_FLYP(reference)."""

    name = "flyp-replay"
    display = "FLYP+replay"
    colour = "#8a3fa0"
    baseline = False
    group = "regularised"
    published = PUBLISHED["flyp-replay"]
    options = FLYPReplayConfig
    needs_reference = True
    reference_features = ()

    def setup(self, clip: Clip, classnames: Sequence[str], templates: Sequence[Any]) -> nn.Module:
        return ReplayTowers(copy_clip(clip), classnames, templates)

    def loss(self, module: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        if self.config.lambda_ == 0:
            return super().loss(module, batch)
        image, text, scale, ref_image, ref_text = module(
            image=batch["image"],
            text=batch["text"],
            ref_image=batch["ref_image"],
            ref_text=batch["ref_text"],
        )
        target = self.contrast(image, text, scale, batch["label"])
        replay = CLIPLoss(group=all_ranks())(ref_image, ref_text, scale)
        values = {"contrastive": target.detach(), "replay": replay.detach()}
        return target + self.config.lambda_ * replay, values
