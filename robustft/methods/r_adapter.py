"""R-Adapter (arXiv 2408.05749): linear adapters on both towers, folded into the model at the end.

Trained: the adapters alone, which are dropped at random, on MPM-NCE; its positives are what has one
class, or, of image-caption pairs, one image. After each step their moving average is updated; the
result is the pre-trained model with the averaged adapters folded in at strength α, and a head from
its text tower.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from robustft.errors import InputError
from robustft.losses import CLIPLoss, MPMNCELoss, all_ranks
from robustft.methods.towers import TwoTowers
from robustft.models import (
    AdapterSet,
    Classifier,
    Clip,
    copy_clip,
    load_adapters,
    merged_state_dict,
    save_adapters,
)
from robustft.models.adapter import ALPHA, AdapterConfig
from robustft.models.adapter_files import Base
from robustft.models.adapter_set import attach
from robustft.train import checks
from robustft.train.method import Method
from robustft.train.published import PUBLISHED

#: In a run folder, the adapters themselves.
ADAPTERS = "adapters"


@dataclass(frozen=True)
class RAdapterConfig(AdapterConfig):
    """The adapters' settings, and: rank: of both towers, where image_rank and text_rank name none.
    loss: "mpm-nce", with margin δ and label_smoothing ε, or "infonce". alpha: strength in the
    result."""

    rank: int | None = None
    loss: str = "mpm-nce"
    margin: float = 0.05
    label_smoothing: float = 0.02
    alpha: float = ALPHA

    def __post_init__(self) -> None:
        checks.plain(self)
        super().__post_init__()
        if self.rank is not None:
            checks.integer("rank", self.rank, least=1)
        checks.choice("loss", self.loss, ("mpm-nce", "infonce"))
        checks.real("margin", self.margin, least=0)
        checks.real("label_smoothing", self.label_smoothing, least=0, below=1)
        checks.real("alpha", self.alpha, least=0, most=1)

    def adapters(self) -> AdapterConfig:
        """The settings that an AdapterSet keeps."""
        own = {field.name: getattr(self, field.name) for field in fields(AdapterConfig)}
        ranks = {
            name: self.rank if own[name] is None else own[name]
            for name in ("image_rank", "text_rank")
        }
        return AdapterConfig(**(own | ranks))


class AdaptedTowers(TwoTowers):
    """Both towers with adapters."""

    def __init__(
        self, clip: Clip, original: Clip, classnames: Any, templates: Any, config: RAdapterConfig
    ) -> None:
        super().__init__(clip, classnames, templates)
        self.adapters: AdapterSet = attach(self.model, config.adapters())
        self.adapters.alpha = config.alpha
        self._original = (original,)

    def merged(self) -> Clip:
        """A plain model with the adapters folded in at their strength."""
        return _merged(self._original[0], self.adapters)


class RAdapter(Method):
    """min over the adapters of MPM-NCE (or InfoNCE)."""

    name = "r-adapter"
    display = "R-Adapter"
    colour = "#009e73"
    group = "adapters"
    published = PUBLISHED["r-adapter"]
    head_from_text = True
    # An average over some twenty steps; the paper's over a thousand is for longer runs.
    demo = {"ema": 0.95}  # noqa: RUF012
    options = RAdapterConfig
    needs_captions = True
    takes_pairs = True
    contrastive = True
    parts = (ADAPTERS,)

    def setup(self, clip: Clip, classnames: Sequence[str], templates: Sequence[Any]) -> nn.Module:
        return AdaptedTowers(copy_clip(clip), clip, classnames, templates, self.config)

    def loss(self, module: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        image, text, scale = module(batch["image"], batch["text"])
        if self.config.loss == "infonce":
            loss = CLIPLoss(group=all_ranks())(image, text, scale)
        else:
            criterion = MPMNCELoss(
                margin=self.config.margin,
                label_smoothing=self.config.label_smoothing,
                group=all_ranks(),
            )
            loss = criterion(image, text, scale, batch["label"], batch["label"])
        return loss, {}

    @property
    def same_draws(self) -> bool:
        return bool(self.config.drop_mode != "sample")

    def after_step(self, module: nn.Module) -> None:
        assert isinstance(module, AdaptedTowers)
        module.adapters.update_ema()

    def classifier(self, module: nn.Module) -> Classifier:
        assert isinstance(module, AdaptedTowers)
        return Classifier.zero_shot(module.merged(), module.classnames, module.templates)

    def save_parts(self, module: nn.Module, run_dir: Path) -> None:
        assert isinstance(module, AdaptedTowers)
        original = module._original[0]
        base = Base(original.name, original.pretrained)
        save_adapters(module.adapters, run_dir / ADAPTERS, base=base)

    def rebuild(
        self, run_dir: Path, clip: Clip, classnames: Sequence[str], templates: Sequence[Any]
    ) -> Callable[[float], Classifier]:
        folder = run_dir / ADAPTERS
        if not folder.is_dir():
            raise InputError(
                f"{run_dir}: no folder {ADAPTERS} there, expected the adapters of the run (train "
                "it again: runs of earlier versions kept the merged model alone)"
            )
        adapters = load_adapters(folder, copy_clip(clip).model)

        def at(alpha: float) -> Classifier:
            return Classifier.zero_shot(_merged(clip, adapters, alpha), classnames, templates)

        return at


def _merged(clip: Clip, adapters: AdapterSet, alpha: float | None = None) -> Clip:
    """A copy of the plain model with the adapters folded in."""
    plain = copy_clip(clip)
    plain.model.load_state_dict(merged_state_dict(adapters.model, adapters, alpha))
    return plain
