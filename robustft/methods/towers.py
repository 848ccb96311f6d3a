"""The module that contrastive methods train: both towers behind one forward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from robustft.models import Classifier, Clip

#: open_clip's bound on the logit scale, exp(ln 100) = 100.
MAX_LOGIT_SCALE = math.log(100.0)


class TwoTowers(nn.Module):
    """An open_clip model that returns unit image and text features and its scale.

    Class names, templates and tokenizer stay with it, so that a head can be made from the text
    tower at any time.
    """

    def __init__(self, clip: Clip, classnames: Sequence[str], templates: Sequence[Any]) -> None:
        super().__init__()
        self.model: Any = clip.model
        self.classnames, self.templates = list(classnames), templates
        # In a tuple, so that the model is registered once, under its own name.
        self._clip = (clip,)

    @property
    def clip(self) -> Clip:
        """The model with its tokenizer and transforms."""
        return replace(self._clip[0], model=self.model)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """image [B, 3, H, W], text int [B, L] to features [B, D], [B, D] and the scale (0-d)."""
        return (*self.encode(image, text), self.model.logit_scale.float().exp().reshape(()))

    def encode(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Unit features of both, in float32."""
        image_features = F.normalize(self.model.encode_image(image).float(), dim=-1)
        return image_features, F.normalize(self.model.encode_text(text).float(), dim=-1)

    def seen(self) -> Tensor:
        """Everything a contrastive loss sees, of one blank picture and one word: [2·D + 1]."""
        clip, device = self._clip[0], self.model.logit_scale.device
        blank = clip.preprocess_val(Image.new("RGB", (64, 64))).unsqueeze(0).to(device)
        image, text, scale = TwoTowers.forward(self, blank, clip.tokenizer(["a"]).to(device))
        return torch.cat([image.flatten(), text.flatten(), scale.reshape(1)])

    def clamp_logit_scale(self) -> None:
        """Keep the scale within 1 ... 100."""
        with torch.no_grad():
            self.model.logit_scale.clamp_(0.0, MAX_LOGIT_SCALE)

    def zero_shot(self) -> Classifier:
        """The model as it is now, with a head from its own text tower."""
        return Classifier.zero_shot(self.clip, self.classnames, self.templates)
