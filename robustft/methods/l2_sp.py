"""L2-SP (arXiv 1802.01483): FT whose weights are pulled back to where they began.

    L = CE + α/2 · |θ - θ0|² + β/2 · |W - W0|²

over the weight matrices θ of the image encoder and W of the head. Plain weight decay pulls towards
zero, and with it away from the pre-trained model; this decay has that model as its origin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustft.methods.ft import FT, FTConfig
from robustft.methods.head import HeadModule, cross_entropy, cross_entropy_of, image_encoder
from robustft.methods.linear_probe import initial_head
from robustft.models import Classifier, Clip
from robustft.train import checks
from robustft.train.published import PUBLISHED


@dataclass(frozen=True)
class L2SPConfig(FTConfig):
    """alpha, beta: weights α of the encoder's and β of the head's distance; both 0 is FT. head:
    what the head is pulled to, its "start" (the zero-shot head) or "zero" (the paper's, whose head
    is new). biases: count the encoder's and the head's other parameters (biases, norms) too."""

    alpha: float = 0.1
    beta: float = 0.01
    head: str = "start"
    biases: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.real("alpha", self.alpha, least=0)
        checks.real("beta", self.beta, least=0)
        checks.choice("head", self.head, ("start", "zero"))
        checks.flag("biases", self.biases)


class TiedModule(HeadModule):
    """A classifier that knows how far its weights are from those it began with."""

    def __init__(self, classifier: Classifier, original: Clip, config: L2SPConfig) -> None:
        super().__init__(classifier)
        self._original = (original,)  # in a tuple: no part of the module's state
        self.biases = config.biases
        for name, value in classifier.head.named_parameters():
            start = torch.zeros_like(value) if config.head == "zero" else value.detach().clone()
            self.register_buffer(f"start_{name}", start, persistent=False)

    def forward(
        self, image: Tensor | None = None, features: Tensor | None = None, tied: bool = False
    ) -> Any:
        """Logits, as a HeadModule; `tied`: and |θ - θ0|² and |W - W0|² (0-d)."""
        logits = super().forward(image, features)
        return (logits, *self.distances()) if tied else logits

    def distances(self) -> tuple[Tensor, Tensor]:
        """|θ - θ0|² of the image encoder and |W - W0|² of the head."""
        pairs = zip(
            image_encoder(self.classifier.clip).parameters(),
            image_encoder(self._original[0].model).parameters(),
            strict=True,
        )
        head = self.classifier.head.named_parameters()
        return self._square(pairs), self._square(
            (value, self.get_buffer(f"start_{name}")) for name, value in head
        )

    def _square(self, pairs: Any) -> Tensor:
        parts = [
            (now - start).square().sum() for now, start in pairs if self.biases or now.ndim >= 2
        ]
        return torch.stack(parts).sum()


class L2SP(FT):
    """min over θ, W, b of CE + α/2 · |θ - θ0|² + β/2 · |W - W0|²."""

    name = "l2-sp"
    display = "L2-SP"
    colour = "#7a5c3e"
    baseline = False
    group = "regularised"
    published = PUBLISHED["l2-sp"]
    options = L2SPConfig
    shardable = False

    def setup(self, clip: Clip, classnames: Sequence[str], templates: Sequence[Any]) -> nn.Module:
        head = initial_head(clip, classnames, templates, "zero-shot")
        return TiedModule(head, clip, self.config)

    def loss(self, module: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        alpha, beta = self.config.alpha, self.config.beta
        if alpha == beta == 0:
            return cross_entropy(module, batch, self.config.label_smoothing)
        logits, encoder, head = module(image=batch["image"], tied=True)
        loss, values = cross_entropy_of(logits, batch["label"], self.config.label_smoothing)
        penalty = alpha / 2 * encoder + beta / 2 * head
        return loss + penalty, values | {"l2_sp": penalty.detach()}
