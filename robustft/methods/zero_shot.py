"""Zero-shot: the pre-trained model with a head made from class names. Nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from robustft.methods.head import HeadModule
from robustft.models import Classifier, Clip, copy_clip
from robustft.train.config import Stage, TrainConfig
from robustft.train.method import Method, freeze
from robustft.train.published import PUBLISHED


class ZeroShot(Method):
    """logits = s·<norm f(x), W_c>, W_c = norm(mean_t norm g(t(c)))."""

    name = "zero-shot"
    display = "Zero-shot"
    colour = "#000000"
    baseline = True
    published = PUBLISHED["zero-shot"]
    head_from_text = False
    takes_pairs = True
    ensembles = ()  # it is the other model of each

    def stages(self, config: TrainConfig) -> list[Stage]:
        return []

    def setup(self, clip: Clip, classnames: Sequence[str], templates: Sequence[Any]) -> nn.Module:
        module = HeadModule(Classifier.zero_shot(copy_clip(clip), classnames, templates))
        freeze(module)
        return module

    def loss(self, module: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        raise NotImplementedError("zero-shot has no stage and therefore no loss")

    def classifier(self, module: nn.Module) -> Classifier:
        assert isinstance(module, HeadModule)
        return module.classifier
