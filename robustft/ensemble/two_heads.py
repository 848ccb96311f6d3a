"""VRF's linear-probe form: one encoder, two heads, one forward pass.

A linear probe leaves the encoder as it was, so the zero-shot model and the probed one differ in
their heads alone. Both models' logits then come from the same features, and an ensemble of the two
costs one model's forward pass and a product of [B, D] with [D, C] (arXiv 2411.06966, section 6).
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from robustft.ensemble._checks import check_same_classes
from robustft.errors import InputError

if TYPE_CHECKING:
    from robustft.models.heads import Classifier


class TwoLogits(NamedTuple):
    """What VRF takes of a batch: features [B, D] and both models' logits [B, C]."""

    features: Tensor
    finetuned: Tensor
    zeroshot: Tensor


class TwoHeads(nn.Module):
    """The zero-shot model and a linear probe of it behind one forward.

    classifier: the probed model; zero_shot_head: the other head. Both are copies. Errors:
    InputError where the encoders differ in any bit, or the classes do.
    """

    def __init__(self, zero_shot: Classifier, probed: Classifier) -> None:
        super().__init__()
        check_same_classes("probed", probed.classnames, "zero_shot", zero_shot.classnames)
        if not same_encoder(zero_shot, probed):
            raise InputError(
                "probed: got an encoder that differs from zero_shot's, expected a linear probe "
                "(for other fine-tuned models run both: VRF.predict_proba takes their outputs)"
            )
        self.classifier = copy.deepcopy(probed)
        self.zero_shot_head = copy.deepcopy(zero_shot.head)

    def forward(self, images: Tensor) -> TwoLogits:
        """Features, and the logits of both, for images [B, 3, H, W]; the encoder runs once."""
        features = self.classifier.features(images)
        with torch.autocast(features.device.type, enabled=False):
            zeroshot = self.zero_shot_head(features)
        return TwoLogits(features, self.classifier.logits(features), zeroshot)

    @torch.no_grad()
    def predict_proba(self, vrf: Any, images: Tensor, **options: Any) -> Tensor:
        """P [B, C] of a fitted `VRF` for images; options as for `VRF.predict_proba`."""
        result: Tensor = vrf.predict_proba(*self(images), **options)
        return result


def same_encoder(one: Classifier, other: Classifier) -> bool:
    """Whether two classifiers differ in their heads alone: all of the model has the same bits."""
    a, b = one.clip.state_dict(), other.clip.state_dict()
    return a.keys() == b.keys() and all(
        tensor.shape == b[name].shape and torch.equal(tensor, b[name].to(tensor.device))
        for name, tensor in a.items()
    )
