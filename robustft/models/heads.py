"""Zero-shot heads from class names, templates and the text tower, and classifiers built on them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustft.data.templates import Template, fill, read_templates
from robustft.errors import InputError, InputTypeError
from robustft.models.clip import Clip, evaluating, scale_of
from robustft.optional import require
from robustft.progress import each

Tokenizer = Callable[[list[str]], Tensor]
TEMPLATE_NAMES = ("openai", "simple", "photo")


@torch.no_grad()
def encode_texts(
    model: nn.Module, tokenizer: Tokenizer, texts: Sequence[str], *, batch_size: int = 256
) -> Tensor:
    """L2-normalised text features [n, D], float32 on the model's device; the model in eval mode.

    Errors: InputError if there are no texts.
    """
    if isinstance(texts, str) or len(texts) == 0:
        raise InputError(f"texts: got {texts!r}, expected a list of at least one string")
    _check_batch_size(batch_size)
    clip: Any = model
    device = next(model.parameters()).device
    parts = []
    with evaluating(model):
        for start in range(0, len(texts), batch_size):
            tokens = tokenizer(list(texts[start : start + batch_size])).to(device)
            parts.append(F.normalize(clip.encode_text(tokens).float(), dim=-1))
    return torch.cat(parts)


@torch.no_grad()
def zero_shot_weights(
    model: nn.Module,
    tokenizer: Tokenizer,
    classnames: Sequence[str],
    templates: str | os.PathLike[str] | Sequence[Template],
    *,
    batch_size: int = 256,
) -> Tensor:
    """W_c = n(mean_t n(g(t(c)))), n the L2 normalisation: [C, D] float32, rows of unit length.

    `templates` as for `resolve_templates`. At most `batch_size` texts are encoded at once.
    Errors: InputError if there are no class names, or templates that are none.
    """
    if isinstance(classnames, str) or len(classnames) == 0:
        raise InputError(f"classnames: got {classnames!r}, expected a list of at least one name")
    _check_batch_size(batch_size)
    formats = resolve_templates(templates)
    step = max(1, batch_size // len(formats))
    rows = []
    starts = range(0, len(classnames), step)
    for start in each(starts, "zero-shot head", len(starts), "batch"):
        names = classnames[start : start + step]
        texts = [fill(template, name) for name in names for template in formats]
        features = encode_texts(model, tokenizer, texts, batch_size=batch_size)
        rows.append(features.unflatten(0, (len(names), len(formats))).mean(dim=1))
    return F.normalize(torch.cat(rows), dim=-1)


def resolve_templates(name: str | os.PathLike[str] | Sequence[Template]) -> list[Template]:
    """Templates: format strings, each with one "{}" for the class name, or functions of it.

    `name` is "openai" (open_clip's 80 for ImageNet), "simple" (its 7), "photo" (one: "a photo of a
    {}."), the path of a text file with one template a line, or the templates themselves. Functions
    are called with each class name, as open_clip calls its own.

    Errors: InputError if a string has not one "{}", or the name is neither known nor a file.
    """
    if isinstance(name, (str, os.PathLike)):
        return _named_templates(name)
    return read_templates(name) or []


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
        device = next(clip_model.parameters()).device
        # Without drawing weights from the caller's generator, which would be replaced at once.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")  # of no class
            self.head = nn.utils.skip_init(nn.Linear, width, classes, device=device)
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
        """The zero-shot classifier of a model: W = s·W_zs. The model is shared, not copied. An
        empty list of classes gives a head without rows, of a model that is used by its towers.

        The head asks for no gradients; to train it, `classifier.head.requires_grad_()`.
        """
        weight = _text_weights(clip.model, clip.tokenizer, classnames, templates, batch_size)
        classifier = cls(clip.model, weight * scale_of(clip.model), None, classnames)
        classifier.head.requires_grad_(False)
        return classifier

    @classmethod
    def of(
        cls,
        clip: Clip,
        classnames: Sequence[str],
        templates: str | os.PathLike[str] | Sequence[Template],
        *,
        batch_size: int = 256,
    ) -> Classifier:
        """The classifier that a loaded model is: with the head that came with its weights, of a
        classifier's file, or else the zero-shot one. The model is shared, not copied.

        Errors: InputError where the head has other classes, or another number of them.
        """
        if clip.head is None:
            return cls.zero_shot(clip, classnames, templates, batch_size=batch_size)
        weight, bias, own = clip.head
        if len(weight) != len(classnames):
            raise InputError(
                f"classnames: got {len(classnames)}, expected {len(weight)} as in the head of "
                f"{clip.pretrained}"
            )
        for number, (its, name) in enumerate(zip(own, classnames, strict=False)):
            if its != name:
                raise InputError(
                    f"classnames: got {name!r} as class {number}, expected {its!r} as in the head "
                    f"of {clip.pretrained}"
                )
        return cls(clip.model, weight, bias, classnames)

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
        weight = _text_weights(self.clip, tokenizer, self.classnames, templates, batch_size)
        self.set_head(weight * scale_of(self.clip))
        return self


def _text_weights(
    model: nn.Module, tokenizer: Tokenizer, classnames: Sequence[str], templates: Any, size: int
) -> Tensor:
    """`zero_shot_weights`, of no class [0, D]."""
    if isinstance(classnames, list) and not classnames:
        return encode_texts(model, tokenizer, [""])[:0]
    return zero_shot_weights(model, tokenizer, classnames, templates, batch_size=size)


def _named_templates(name: str | os.PathLike[str]) -> list[Template]:
    if name == "photo":
        return ["a photo of a {}."]
    if name in ("openai", "simple"):
        open_clip = require("open_clip", extra="openclip")
        functions = getattr(open_clip, f"{str(name).upper()}_IMAGENET_TEMPLATES")
        # These do nothing but put the name in its place, and strings can be written down.
        return [function("{}") for function in functions]
    path = Path(name)
    if not path.is_file():
        raise InputError(
            f"templates: {str(name)!r} is neither a file nor one of {', '.join(TEMPLATE_NAMES)}"
        )
    return read_templates(path) or []


def _check_batch_size(batch_size: int) -> None:
    if not isinstance(batch_size, int):
        raise InputTypeError(f"batch_size: got {batch_size!r}, expected an integer")
    if batch_size < 1:
        raise InputError(f"batch_size: got {batch_size}, expected at least 1")
