"""CAR-FT (arXiv 2211.16175): FT that keeps telling contexts apart as the pre-trained model does.

A context is a prompt template ("a sketch of a {}."), and w_m is the unit mean of its text features
over all classes. With p(x) = softmax_m s·<norm f(x), w_m> and p0 the same of the frozen f0,

    L = CE + α · KL( p0(x) ‖ p(x) )

Texts and logit scale are those of the pre-trained model throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustft.data.templates import fill
from robustft.errors import InputError
from robustft.methods.frozen import Anchored, compare_logits
from robustft.methods.ft import FT, FTConfig
from robustft.methods.head import cross_entropy, cross_entropy_of
from robustft.methods.linear_probe import initial_head
from robustft.models import Clip, encode_texts
from robustft.train import checks
from robustft.train.published import PUBLISHED


@dataclass(frozen=True)
class CARFTConfig(FTConfig):
    """alpha: weight α of the context term; 0 is FT."""

    alpha: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.real("alpha", self.alpha, least=0)


class ContextModule(Anchored):
    """A classifier, the frozen model, and the contexts s·w_m [M, D]."""

    def __init__(self, classifier: Any, original: Clip, contexts: Tensor) -> None:
        super().__init__(classifier, original)
        self.register_buffer("contexts", contexts * self.scale, persistent=False)

    def forward(
        self, image: Tensor | None = None, features: Tensor | None = None, compare: bool = False
    ) -> Any:
        """Logits, as a HeadModule; `compare`: and what `compare_logits` takes."""
        if not compare or image is None:
            return super().forward(image, features)
        return (*self.compared(image), self.contexts)


class CARFT(FT):
    """min over θ, W, b of CE + α · KL(p0 ‖ p)."""

    name = "car-ft"
    display = "CAR-FT"
    colour = "#2f6f8f"
    baseline = False
    group = "regularised"
    published = PUBLISHED["car-ft"]
    options = CARFTConfig

    def setup(self, clip: Clip, classnames: Sequence[str], templates: Sequence[Any]) -> nn.Module:
        head = initial_head(clip, classnames, templates, "zero-shot")
        return ContextModule(head, clip, context_weights(clip, classnames, templates))

    def loss(self, module: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        if self.config.alpha == 0:
            return cross_entropy(module, batch, self.config.label_smoothing)
        logits, features, before, contexts = module(image=batch["image"], compare=True)
        loss, values = cross_entropy_of(logits, batch["label"], self.config.label_smoothing)
        divergence = compare_logits(features, before, contexts, form="kl")
        return loss + self.config.alpha * divergence, values | {"context_kl": divergence.detach()}


@torch.no_grad()
def context_weights(clip: Clip, classnames: Sequence[str], templates: Sequence[Any]) -> Tensor:
    """w_m = norm(mean_c norm g(t_m(c))) of M templates: [M, D] float32, rows of unit length.

    Errors: InputError for fewer than two templates, whose softmax says nothing.
    """
    if len(templates) < 2:
        raise InputError(f"templates: got {len(templates)}, expected at least two for car-ft")
    rows = []
    for template in templates:
        texts = [fill(template, name) for name in classnames]
        rows.append(encode_texts(clip.model, clip.tokenizer, texts).mean(dim=0))
    return F.normalize(torch.stack(rows), dim=-1)
