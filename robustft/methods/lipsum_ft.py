"""Lipsum-FT (Nam et al., ICLR 2024): FT that keeps the energies of random texts.

With M texts t_m of L random tokens, drawn anew in every step,

    L = CE + λ · mean_x 1/(2M) Σ_m ( s·<norm f(x), norm g0(t_m)> - s·<norm f0(x), norm g0(t_m)> )²

The texts mean nothing: they probe the whole joint space, and not where the classes lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from robustft.methods.frozen import Anchored, compare_logits, frozen_texts, unit
from robustft.methods.ft import FT, FTConfig
from robustft.methods.head import cross_entropy, cross_entropy_of
from robustft.methods.linear_probe import initial_head
from robustft.methods.token_rows import Tokens
from robustft.models import Clip
from robustft.train import checks
from robustft.train.published import PUBLISHED


@dataclass(frozen=True)
class LipsumFTConfig(FTConfig):
    """lambda_: weight λ of the energy gap; 0 is FT. texts: M, random texts a step. length: L,
    random tokens a text."""

    lambda_: float = 1.0
    texts: int = 80
    length: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.real("lambda_", self.lambda_, least=0)
        checks.integer("texts", self.texts, least=1)
        checks.integer("length", self.length, least=1)


class LipsumModule(Anchored):
    """A classifier, the frozen model, and random texts for it."""

    def __init__(self, classifier: Any, original: Clip, tokens: Tokens, length: int) -> None:
        super().__init__(classifier, original)
        self.tokens, self.length = tokens, length

    def forward(
        self, image: Tensor | None = None, features: Tensor | None = None, texts: int = 0
    ) -> Any:
        """Logits, as a HeadModule; `texts`, how many to draw: and what `compare_logits` takes."""
        if not texts or image is None:
            return super().forward(image, features)
        tokens = self.tokens.random(texts, self.length).to(image.device)
        return (*self.compared(image), self.scale * unit(frozen_texts(self.original, tokens)))


class LipsumFT(FT):
    """min over θ, W, b of CE + λ · the energy gap."""

    name = "lipsum-ft"
    display = "Lipsum-FT"
    colour = "#a65628"
    baseline = False
    group = "regularised"
    published = PUBLISHED["lipsum-ft"]
    options = LipsumFTConfig
    same_draws = True

    def setup(self, clip: Clip, classnames: Sequence[str], templates: Sequence[Any]) -> nn.Module:
        tokens = Tokens(clip, method=self.name)
        tokens.check_room(self.config.length)
        head = initial_head(clip, classnames, templates, "zero-shot")
        return LipsumModule(head, clip, tokens, self.config.length)

    def loss(self, module: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        weight = self.config.lambda_
        if weight == 0:
            return cross_entropy(module, batch, self.config.label_smoothing)
        logits, features, before, texts = module(image=batch["image"], texts=self.config.texts)
        loss, values = cross_entropy_of(logits, batch["label"], self.config.label_smoothing)
        gap = compare_logits(features, before, texts, form="squared")
        return loss + weight * gap, values | {"energy_gap": gap.detach()}
