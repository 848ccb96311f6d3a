"""FT: image encoder and head trained end to end with cross-entropy, from the zero-shot head.

The fine-tuned end of WiSE-FT (arXiv 2109.01903). The head is the zero-shot head with the logit
scale folded in and a zero bias; the text tower only serves to make it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from robustft.methods.head import HeadModule, cross_entropy, train_image_encoder
from robustft.methods.linear_probe import initial_head
from robustft.models import Classifier, Clip
from robustft.train import checks
from robustft.train.method import Method
from robustft.train.published import PUBLISHED


@dataclass(frozen=True)
class FTConfig:
    """Label smoothing of the cross-entropy."""

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        checks.plain(self)
        checks.real("label_smoothing", self.label_smoothing, least=0, below=1)


class FT(Method):
    """min over θ, W, b of CE(W·norm f_θ(x) + b, y), W = s·W_zero-shot at first."""

    name = "ft"
    display = "FT"
    colour = "#d55e00"
    baseline = True
    published = PUBLISHED["ft"]
    head_from_text = False
    options = FTConfig
    shardable = True

    def setup(self, clip: Clip, classnames: Sequence[str], templates: Sequence[Any]) -> nn.Module:
        return HeadModule(initial_head(clip, classnames, templates, "zero-shot"))

    def begin_stage(self, module: nn.Module, stage: int) -> None:
        assert isinstance(module, HeadModule)
        train_image_encoder(module)

    def loss(self, module: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return cross_entropy(module, batch, self.config.label_smoothing)

    def classifier(self, module: nn.Module) -> Classifier:
        assert isinstance(module, HeadModule)
        return module.classifier
