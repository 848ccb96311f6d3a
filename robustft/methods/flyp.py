"""FLYP (arXiv 2212.00638): fine-tune as CLIP was pre-trained, on captions made from class names.

L = ½·(CE over images + CE over captions) of s·<norm f(x_i), norm g(t_j)>; both towers and s are
trained. The targets are the diagonal, as in the release: another sample of the same class is a
negative. `positives="label"` shares the target among all samples of the class instead, or, of
image-caption pairs, of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from robustft.losses import CLIPLoss, MPMNCELoss, all_ranks
from robustft.methods.towers import TwoTowers
from robustft.models import Classifier, Clip, copy_clip
from robustft.train import checks
from robustft.train.method import Method, freeze, freeze_unseen, unfreeze
from robustft.train.published import PUBLISHED


@dataclass(frozen=True)
class FLYPConfig:
    """positives: "diagonal" or "label". train_scale: train the logit scale. clamp_scale: keep it
    within 1 ... 100 after each step, as open_clip does."""

    positives: str = "diagonal"
    train_scale: bool = True
    clamp_scale: bool = True

    def __post_init__(self) -> None:
        checks.plain(self)
        checks.choice("positives", self.positives, ("diagonal", "label"))
        checks.flag("train_scale", self.train_scale)
        checks.flag("clamp_scale", self.clamp_scale)


class FLYP(Method):
    """min over θ, φ, s of the symmetric contrastive loss."""

    name = "flyp"
    display = "FLYP"
    colour = "#b5508a"
    baseline = True
    published = PUBLISHED["flyp"]
    head_from_text = True
    options = FLYPConfig
    shardable = True
    needs_captions = True
    takes_pairs = True
    contrastive = True

    def setup(self, clip: Clip, classnames: Sequence[str], templates: Sequence[Any]) -> nn.Module:
        return TwoTowers(copy_clip(clip), classnames, templates)

    def begin_stage(self, module: nn.Module, stage: int) -> None:
        assert isinstance(module, TwoTowers)
        freeze(module)
        unfreeze(module.model)
        module.model.logit_scale.requires_grad_(self.config.train_scale)
        freeze_unseen(module, module.seen)  # SigLIP's bias, CoCa's decoder

    def loss(self, module: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        image, text, scale = module(batch["image"], batch["text"])
        loss = self.contrast(image, text, scale, batch["label"])
        return loss, {"contrastive": loss.detach()}

    def contrast(self, image: Tensor, text: Tensor, scale: Tensor, label: Tensor) -> Tensor:
        """The contrastive loss of unit features, over the batches of all processes."""
        group = all_ranks()
        if self.config.positives == "label":
            criterion = MPMNCELoss(margin=0.0, label_smoothing=0.0, group=group)
            return criterion(image, text, scale, label, label)
        return CLIPLoss(group=group)(image, text, scale)

    def after_step(self, module: nn.Module) -> None:
        assert isinstance(module, TwoTowers)
        if self.config.clamp_scale and self.config.train_scale:
            module.clamp_logit_scale()

    def classifier(self, module: nn.Module) -> Classifier:
        assert isinstance(module, TwoTowers)
        return module.zero_shot()
