"""An image classifier made of a CLIP model and a linear head, and its file."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustft.errors import InputError, InputTypeError
from robustft.extras import require
from robustft.files import replacing
from robustft.models.adapter import adapters_of
from robustft.models.clip import Clip, scale_of
from robustft.models.heads import Template, Tokenizer, zero_shot_weights
from robustft.models.weights import check_same_tensors

FORMAT = 1
_KEY = "robustft.classifier"


class Classifier(nn.Module):
    """logits = n(f(x)) Wᵀ + b, with f the image tower and n the L2 normalisation.

    `clip` is the whole open_clip model, so that a head can be made anew from its text tower. `head`
    is a Linear(D, C) with the logit scale folded into W, as in WiSE-FT (arXiv 2109.01903); its bias
    is zero where none is given, so that all classifiers of one model have the same tensors.
    `metadata` is what a saved classifier carried along.
    """

    def __init__(
        self,
        clip_model: nn.Module,
        weight: Tensor,
        bias: Tensor | None = None,
        classnames: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if weight.ndim != 2:
            raise InputError(f"weight: got shape {list(weight.shape)}, expected [classes, width]")
        classes, width = weight.shape
        if len(classnames) != classes:
            raise InputError(f"classnames: got {len(classnames)}, expected {classes} as in weight")
        if bias is not None and bias.shape != (classes,):
            raise InputError(f"bias: got shape {list(bias.shape)}, expected [{classes}]")
        self.clip: Any = clip_model
        self.classnames = list(classnames)
        self.metadata: dict[str, Any] = {}
        self.head = nn.Linear(width, classes, device=next(clip_model.parameters()).device)
        self.set_head(weight, bias)

    @classmethod
    def zero_shot(
        cls,
        clip: Clip,
        classnames: Sequence[str],
        templates: str | os.PathLike[str] | Sequence[Template],
        *,
        batch_size: int = 256,
    ) -> Classifier:
        """The zero-shot classifier of a model: W = s·W_zs. The model is shared, not copied."""
        weight = zero_shot_weights(
            clip.model, clip.tokenizer, classnames, templates, batch_size=batch_size
        )
        return cls(clip.model, weight * scale_of(clip.model), None, classnames)

    def features(self, images: Tensor) -> Tensor:
        """Image features [B, D], float32 and of unit length, for images [B, 3, H, W]."""
        return F.normalize(self.clip.encode_image(images).float(), dim=-1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, C] for images [B, 3, H, W]."""
        return self.logits(self.features(images))

    def logits(self, features: Tensor) -> Tensor:
        """Logits [B, C] for features [B, D], in the head's precision even under autocast.

        At a scale of 100, logits in bfloat16 would be off by up to 0.25.
        """
        with torch.autocast(features.device.type, enabled=False):
            return self.head(features.to(self.head.weight.dtype))

    @torch.no_grad()
    def set_head(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Overwrite the head with weight [C, D] and bias [C], or zeros."""
        self.head.weight.copy_(weight)
        if bias is None:
            self.head.bias.zero_()
        else:
            self.head.bias.copy_(bias)

    def rebuild_head(
        self,
        tokenizer: Tokenizer,
        templates: str | os.PathLike[str] | Sequence[Template],
        *,
        batch_size: int = 256,
    ) -> Classifier:
        """Make the head anew from the text tower and logit scale as they are now; returns self."""
        weight = zero_shot_weights(
            self.clip, tokenizer, self.classnames, templates, batch_size=batch_size
        )
        self.set_head(weight * scale_of(self.clip))
        return self


def save_classifier(
    path: str | Path, classifier: Classifier, *, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write a classifier to one safetensors file: "clip.*", "head.weight", "head.bias".

    `metadata` (anything JSON can hold) goes into the file's header together with the class names
    and the format version.

    Errors: InputError if the model carries adapters (merge them first) or the path does not end in
    .safetensors.
    """
    target = Path(path)
    if target.suffix != ".safetensors":
        raise InputError(f"path: got {str(target)!r}, expected a name ending in .safetensors")
    if adapters_of(classifier.clip) is not None:
        raise InputError(
            "classifier: its model carries adapters, expected a plain model; load "
            "merged_state_dict into an unadapted copy first"
        )
    try:
        header = json.dumps(
            {
                "format": FORMAT,
                "classnames": classifier.classnames,
                "metadata": dict(metadata or {}),
            }
        )
    except (TypeError, ValueError) as error:
        raise InputTypeError(f"metadata: got what JSON cannot hold ({error})") from error
    # Clones, because safetensors refuses tensors that share memory.
    tensors = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in classifier.state_dict().items()
    }
    safetensors = require("safetensors.torch", extra="openclip")
    with replacing(target) as temporary:
        safetensors.save_file(tensors, temporary, metadata={_KEY: header})


def classifier_metadata(path: str | Path) -> dict[str, Any]:
    """The header of a saved classifier: "format", "classnames" and "metadata".

    Errors: InputError if the file is no classifier of a known format; OSError if it cannot be read.
    """
    safetensors = require("safetensors", extra="openclip")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(_KEY)
    except safetensors.SafetensorError as error:
        raise InputError(f"{path}: not a whole safetensors file ({error})") from error
    if header is None:
        raise InputError(f"{path}: not a classifier saved by robustft")
    description: dict[str, Any] = json.loads(header)
    if description.get("format") != FORMAT:
        raise InputError(f"{path}: format {description.get('format')!r}, expected {FORMAT}")
    return description


def load_classifier(path: str | Path, clip: Clip) -> Classifier:
    """Read a saved classifier; `clip` gives the architecture and is left as it is.

    Errors: InputError, naming the first tensors that differ, if the file is of another model.
    """
    description = classifier_metadata(path)
    tensors = require("safetensors.torch", extra="openclip").load_file(path)
    for name in ("head.weight", "head.bias"):
        if name not in tensors:
            raise InputError(f"{path}: {name} is missing")
    saved = {k.removeprefix("clip."): v for k, v in tensors.items() if k.startswith("clip.")}
    check_same_tensors(clip.model.state_dict(), saved, f"the model {clip.name}", str(path))
    model = copy.deepcopy(clip.model)
    model.load_state_dict(saved)
    classifier = Classifier(
        model, tensors["head.weight"], tensors["head.bias"], description["classnames"]
    )
    classifier.metadata = description["metadata"]
    return classifier.eval()
