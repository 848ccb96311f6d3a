"""R-Adapter (arXiv 2408.05749): linear adapters on both towers, folded into the model at the end.

Trained: the adapters alone, on MPM-NCE with class labels as positives, while adapters are dropped
at random. After each step their moving average is updated; the result is the pre-trained model
with the averaged adapters folded in at strength α, and a head from its text tower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from robustft.errors import InputError
from robustft.losses import CLIPLoss, MPMNCELoss
from robustft.methods.towers import TwoTowers
from robustft.models import AdapterSet, Classifier, Clip, add_adapters, copy_clip, merged_state_dict
from robustft.train import checks
from robustft.train.method import Method


@dataclass(frozen=True)
class RAdapterConfig:
    """rank: of the adapters, None for full rank; image_rank and text_rank for one tower. drop: p of
    adapter dropping, per "sample", "module" or "token". ema: momentum of the moving average, taken
    of the "factors" or the "product". scale: s at first; learn_scale trains it. loss: "mpm-nce",
    with margin δ and label_smoothing ε, or "infonce". alpha: strength in the result."""

    rank: int | None = None
    image_rank: int | None = None
    text_rank: int | None = None
    drop: float = 0.2
    drop_mode: str = "sample"
    ema: float = 0.999
    ema_of: str = "factors"
    scale: float = 0.1
    learn_scale: bool = True
    loss: str = "mpm-nce"
    margin: float = 0.05
    label_smoothing: float = 0.02
    alpha: float = 0.5

    def __post_init__(self) -> None:
        for name in ("rank", "image_rank", "text_rank"):
            if getattr(self, name) is not None:
                checks.integer(name, getattr(self, name), least=1)
        checks.real("drop", self.drop, least=0, below=1)
        checks.choice("drop_mode", self.drop_mode, ("sample", "module", "token"))
        checks.real("ema", self.ema, least=0, below=1)
        checks.choice("ema_of", self.ema_of, ("factors", "product"))
        checks.real("scale", self.scale)
        if self.scale == 0:
            raise InputError("scale must not be 0: the adapters could not learn")
        checks.flag("learn_scale", self.learn_scale)
        checks.choice("loss", self.loss, ("mpm-nce", "infonce"))
        checks.real("margin", self.margin, least=0)
        checks.real("label_smoothing", self.label_smoothing, least=0, below=1)
        checks.real("alpha", self.alpha, least=0, most=1)


class AdaptedTowers(TwoTowers):
    """Both towers with adapters."""

    def __init__(
        self, clip: Clip, original: Clip, classnames: Any, templates: Any, config: RAdapterConfig
    ) -> None:
        super().__init__(clip, classnames, templates)
        self.adapters: AdapterSet = add_adapters(
            self.model,
            rank=config.rank,
            image_rank=config.image_rank,
            text_rank=config.text_rank,
            drop=config.drop,
            drop_mode=config.drop_mode,
            scale=config.scale,
            learn_scale=config.learn_scale,
            ema=config.ema,
            ema_of=config.ema_of,
        )
        self._original = (original,)

    def merged(self, alpha: float) -> Clip:
        """A plain model with the adapters folded in at strength `alpha`."""
        plain = copy_clip(self._original[0])
        plain.model.load_state_dict(merged_state_dict(self.model, self.adapters, alpha))
        return plain


class RAdapter(Method):
    """min over the adapters of MPM-NCE (or InfoNCE)."""

    name = "r-adapter"
    options = RAdapterConfig
    needs_captions = True
    contrastive = True

    def setup(self, clip: Clip, classnames: Sequence[str], templates: Sequence[Any]) -> nn.Module:
        return AdaptedTowers(copy_clip(clip), clip, classnames, templates, self.config)

    def loss(self, module: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        image, text, scale = module(batch["image"], batch["text"])
        if self.config.loss == "infonce":
            loss = CLIPLoss()(image, text, scale)
        else:
            criterion = MPMNCELoss(
                margin=self.config.margin, label_smoothing=self.config.label_smoothing
            )
            loss = criterion(image, text, scale, batch["label"], batch["label"])
        return loss, {}

    def after_step(self, module: nn.Module) -> None:
        assert isinstance(module, AdaptedTowers)
        module.adapters.update_ema()

    def classifier(self, module: nn.Module) -> Classifier:
        assert isinstance(module, AdaptedTowers)
        merged = module.merged(self.config.alpha)
        return Classifier.zero_shot(merged, module.classnames, module.templates)
