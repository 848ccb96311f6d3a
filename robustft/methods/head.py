"""The module that cross-entropy methods train: a classifier, on images or on features."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from robustft.accuracy import correct
from robustft.errors import InputError
from robustft.models import Classifier
from robustft.train.method import freeze, unfreeze


class HeadModule(nn.Module):
    """A classifier behind one forward: image [B, 3, H, W] or features [B, D] to logits [B, C]."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, image: Tensor | None = None, features: Tensor | None = None) -> Tensor:
        if features is not None:
            return self.classifier.logits(features)
        logits: Tensor = self.classifier(image)
        return logits


def train_head_only(module: HeadModule) -> None:
    """Gradients for the head alone."""
    freeze(module)
    unfreeze(module.classifier.head)


def train_image_encoder(module: HeadModule) -> None:
    """Gradients for the image encoder and the head; the text tower and the scale stay."""
    freeze(module)
    unfreeze(image_encoder(module.classifier.clip))
    unfreeze(module.classifier.head)


def image_encoder(clip_model: Any) -> nn.Module:
    """The part of an open_clip model that encodes images."""
    visual = getattr(clip_model, "visual", None)
    if not isinstance(visual, nn.Module):
        raise InputError(
            f"model: got a {type(clip_model).__name__}, expected an image encoder "
            "`visual` in it, as open_clip's have"
        )
    return visual


def cross_entropy(
    module: nn.Module, batch: dict[str, Tensor], label_smoothing: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy of a HeadModule on a batch of images or features."""
    if "features" in batch:
        logits = module(features=batch["features"])
    else:
        logits = module(image=batch["image"])
    return cross_entropy_of(logits, batch["label"], label_smoothing)


def cross_entropy_of(
    logits: Tensor, label: Tensor, label_smoothing: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy of logits [B, C] with labels [B], and the batch's accuracy for the log."""
    loss = F.cross_entropy(logits.float(), label, label_smoothing=label_smoothing)
    right = correct(logits.detach(), label).float().mean()
    return loss, {"accuracy": right}
