"""The model from before training, beside the one that is trained: what regularisers look at.

`compare_logits` is what CAR-FT, Lipsum-FT and StarFT share: how far the logits against many texts
have moved.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustft.methods.head import HeadModule
from robustft.models import Classifier, Clip, evaluating
from robustft.models.clip import scale_of

#: In place of the logit of a pair that is left out. Finite, so that a row that has lost all its
#: pairs is a uniform distribution on both sides, and contributes nothing.
_LEFT_OUT = -1e8


def compare_logits(
    image: Tensor,
    image_before: Tensor,
    text: Tensor,
    text_before: Tensor | None = None,
    *,
    form: str,
    exclude: Tensor | None = None,
) -> Tensor:
    """How far the logits of B images against M texts have moved: a scalar, a mean over the images.

    With z = F·Tᵀ and z0 = F0·T0ᵀ, both [B, M],

        "squared"   mean_i 1/(2M) Σ_m (z_im - z0_im)²
        "kl"        mean_i Σ_m p0_im (log p0_im - log p_im),    p = softmax_m z, p0 likewise

    Args:
        image, image_before: features [B, D] of the tuned and the frozen model.
        text, text_before: text features [M, D] of the two, with the logit scale in them; without
            text_before both models share the texts.
        form: "squared" or "kl".
        exclude: bool [B, M], pairs that "kl" leaves out of both softmaxes.
    """
    shared = text_before is None
    with torch.autocast(image.device.type, enabled=False):
        if form == "squared" and shared:
            return _half_mean_square((image - image_before) @ text.T)
        now = image @ text.T
        before = image_before @ (text if text_before is None else text_before).T
        if form == "squared":
            return _half_mean_square(now - before)
        if exclude is not None:
            now, before = (z.masked_fill(exclude, _LEFT_OUT) for z in (now, before))
        log_p, log_p0 = now.log_softmax(dim=1), before.log_softmax(dim=1)
        return F.kl_div(log_p, log_p0, reduction="batchmean", log_target=True)


def _half_mean_square(difference: Tensor) -> Tensor:
    return 0.5 * difference.square().mean()


@torch.no_grad()
def frozen_images(clip: Clip, image: Tensor) -> Tensor:
    """Raw image features [B, D] of `clip` as it is, in evaluation mode."""
    model: Any = clip.model
    with evaluating(model):
        features: Tensor = model.encode_image(image)
    return features


@torch.no_grad()
def frozen_texts(clip: Clip, tokens: Tensor) -> Tensor:
    """Raw text features [M, D] of `clip` as it is, in evaluation mode."""
    model: Any = clip.model
    with evaluating(model):
        features: Tensor = model.encode_text(tokens)
    return features


def unit(features: Tensor) -> Tensor:
    """Rows of length 1, in float32."""
    return F.normalize(features.float(), dim=-1)


class Anchored(HeadModule):
    """A classifier beside the frozen model that it began as; subclasses say with which texts."""

    def __init__(self, classifier: Classifier, original: Clip) -> None:
        super().__init__(classifier)
        self._original = (original,)  # in a tuple: no part of the module's state

    @property
    def original(self) -> Clip:
        return self._original[0]

    @property
    def scale(self) -> Tensor:
        """s of the frozen model, 0-d."""
        return scale_of(self.original.model)

    def compared(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [B, C], and unit features [B, D] of the tuned and of the frozen model."""
        features = self.classifier.features(image)
        return self.classifier.logits(features), features, unit(frozen_images(self.original, image))


def unwrapped(module: nn.Module) -> Any:
    """The module inside DistributedDataParallel, or itself."""
    inner = getattr(module, "module", None)
    return module if inner is None else inner
