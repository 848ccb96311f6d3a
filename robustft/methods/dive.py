"""DiVE (arXiv 2511.09973): FLYP that moves all reference pairs by nearly the same vector.

With u = norm f(x) - norm f0(x) and v = norm g(t) - norm g0(t) on a batch of reference pairs, and m
the running mean of all u and v,

    L = L_FLYP + λ·( mean_j |u_j - m|² + |v_j - m|²  +  mean_j |u_j - v_j|² )

so that the pre-trained space is shifted rather than bent. The result is the fine-tuned model
alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustft.losses import DiVELoss, all_ranks
from robustft.methods.flyp import FLYP, FLYPConfig
from robustft.methods.frozen import frozen_images, unwrapped
from robustft.methods.towers import TwoTowers
from robustft.models import Clip, copy_clip, evaluating
from robustft.train import checks
from robustft.train.published import PUBLISHED


@dataclass(frozen=True)
class DiVEConfig(FLYPConfig):
    """lambda_: weight λ of both vector losses; 0 trains as FLYP does, and only logs them.
    momentum: α of the running mean. normalize: difference vectors of unit features; of raw ones
    otherwise, and λ then wants to be some hundred times smaller. reference_batch_size: pairs a
    forward pass, None for the batch size."""

    lambda_: float = 1000.0
    momentum: float = 0.99
    normalize: bool = True
    reference_batch_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.real("lambda_", self.lambda_, least=0)
        checks.real("momentum", self.momentum, least=0, below=1)
        checks.flag("normalize", self.normalize)
        if self.reference_batch_size is not None:
            checks.integer("reference_batch_size", self.reference_batch_size, least=1)


class DiVEModule(TwoTowers):
    """Both towers, and the running mean m of the difference vectors."""

    def __init__(
        self, clip: Clip, original: Clip, classnames: Any, templates: Any, config: DiVEConfig
    ) -> None:
        super().__init__(clip, classnames, templates)
        self.vectors = DiVELoss(
            clip.embed_dim,
            momentum=config.momentum,
            normalize=config.normalize,
            group=all_ranks(),
        )
        self._original = (original,)

    def forward(  # type: ignore[override]
        self,
        image: Tensor,
        text: Tensor,
        ref_image: Tensor,
        ref_text: Tensor,
        ref_grad: bool = True,
    ) -> tuple[Tensor, ...]:
        """Features and scale of the target batch, raw features of the reference batch.

        The reference pass runs in evaluation mode: difference vectors are those of the encoders
        as they are used, they are zero before the first step, and neither random masks nor
        running statistics notice the pass.
        """
        target = super().forward(image, text)
        with evaluating(self.model), torch.set_grad_enabled(ref_grad and torch.is_grad_enabled()):
            reference = self.model.encode_image(ref_image), self.model.encode_text(ref_text)
        return (*target, *reference)

    def pretrained_image(self, image: Tensor) -> Tensor:
        """Raw features of the model as it was before training, for augmented references."""
        return frozen_images(self._original[0], image)


class DiVE(FLYP):
    """min over θ, φ, s of L_FLYP + λ·(AVL + PVL)."""

    name = "dive"
    display = "DiVE"
    colour = "#5e3c99"
    group = "regularised"
    baseline = False
    # λ = 1000 is for tens of thousands of steps (docs/demo.md).
    demo = {"lambda_": 10.0}  # noqa: RUF012
    published = PUBLISHED["dive"]
    options = DiVEConfig
    needs_reference = True

    def setup(self, clip: Clip, classnames: Sequence[str], templates: Sequence[Any]) -> nn.Module:
        return DiVEModule(copy_clip(clip), clip, classnames, templates, self.config)

    def loss(self, module: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        weight = self.config.lambda_
        image, text, scale, ref_image, ref_text = module(
            batch["image"], batch["text"], batch["ref_image"], batch["ref_text"], weight > 0
        )
        own = unwrapped(module)
        before = batch.get("ref_image_pretrained")
        if before is None:
            before = own.pretrained_image(batch["ref_image"])
        average, pairwise = own.vectors(
            ref_image.float(),
            before.float(),
            ref_text.float(),
            batch["ref_text_pretrained"].float(),
        )
        loss = contrastive = self.contrast(image, text, scale, batch["label"])
        if weight > 0:
            loss = loss + weight * (average + pairwise)
        return loss, {
            "contrastive": contrastive.detach(),
            "avl": average.detach(),
            "pvl": pairwise.detach(),
        }
