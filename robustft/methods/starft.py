"""StarFT (arXiv 2505.13232): FLYP that does not learn to read the background into the class.

Behind each caption of the batch a phrase is put that says nothing about the class ("in the snow"),
giving texts t̃_j. With s0 of the pre-trained model and q(x_i) = softmax_j s0·<norm f(x_i), norm
g(t̃_j)> over the j of other classes than i's, and q0 the same of the frozen model,

    L = L_FLYP + ρ_e · mean_i KL( q0(x_i) ‖ q(x_i) ),      ρ_e = ρ·(1 - (e+1)/E) in epoch e of E

so that an image stays as far from other classes in its own surroundings as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from robustft.data.text_files import filled_lines
from robustft.errors import InputError, warn
from robustft.methods.flyp import FLYP, FLYPConfig
from robustft.methods.frozen import compare_logits, frozen_images, frozen_texts, unit, unwrapped
from robustft.methods.over_ranks import draw, rows_of_all
from robustft.methods.starft_words import PHRASES
from robustft.methods.token_rows import Phrases, Tokens
from robustft.methods.towers import TwoTowers
from robustft.models import Clip, copy_clip
from robustft.models.clip import scale_of
from robustft.train import checks
from robustft.train.config import Stage, TrainConfig
from robustft.train.fingerprint import digest_texts
from robustft.train.published import PUBLISHED


@dataclass(frozen=True)
class StarFTConfig(FLYPConfig):
    """rho: weight ρ of the divergence; 0 is FLYP. decay: let it fall to zero over the epochs.
    mask: leave texts of the image's own class out. spurious: the built-in phrases, of "background",
    "texture", "resolution" or "all". phrases: a text file with one a line instead."""

    rho: float = 0.5
    decay: bool = True
    mask: bool = True
    spurious: str = "background"
    phrases: str | None = field(default=None, metadata=checks.FILE)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.real("rho", self.rho, least=0)
        checks.flag("decay", self.decay)
        checks.flag("mask", self.mask)
        checks.choice("spurious", self.spurious, (*PHRASES, "all"))

    def read(self) -> list[str]:
        """The phrases, without a period at the end."""
        if self.phrases is not None:
            found = [line.rstrip(". ") for _, line in filled_lines(Path(self.phrases))]
            if not any(found):
                raise InputError(f"phrases: got none in {self.phrases}, expected at least one")
            return [phrase for phrase in found if phrase]
        kinds = PHRASES if self.spurious == "all" else (self.spurious,)
        return [phrase for kind in kinds for phrase in PHRASES[kind]]


class StarTowers(TwoTowers):
    """Both towers, the frozen model, and the phrases. `share` is ρ_e/ρ."""

    def __init__(
        self, clip: Clip, original: Clip, classnames: Any, templates: Any, phrases: Phrases
    ) -> None:
        super().__init__(clip, classnames, templates)
        self._original = (original,)  # in a tuple: no part of the module's state
        self.phrases = phrases
        self.share = 1.0

    def forward(  # type: ignore[override]
        self, image: Tensor, text: Tensor, compare: bool = False
    ) -> tuple[Tensor, ...]:
        """Unit features [B, D] of both and the scale; `compare`: and the frozen model's of the
        images, and s0 times those of the spurious texts, tuned and frozen."""
        target = super().forward(image, text)
        if not compare:
            return target
        original = self._original[0]
        which = draw(len(self.phrases), len(text)).to(text.device)
        spurious = self.phrases.after(text, which)
        scale = scale_of(original.model)
        return (
            *target,
            unit(frozen_images(original, image)),
            scale * unit(self.model.encode_text(spurious)),
            scale * unit(frozen_texts(original, spurious)),
        )


class StarFT(FLYP):
    """min over θ, φ, s of L_FLYP + ρ_e · KL(q0 ‖ q)."""

    name = "starft"
    display = "StarFT"
    colour = "#c2185b"
    baseline = False
    group = "regularised"
    published = PUBLISHED["starft"]
    options = StarFTConfig
    same_draws = True

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.phrases = self.config.read()

    def identity(self) -> dict[str, Any]:
        """With the phrases themselves, wherever they come from."""
        own = super().identity()
        return {key: v for key, v in own.items() if key not in ("spurious", "phrases")} | {
            "phrases": digest_texts(self.phrases)
        }

    def stages(self, config: TrainConfig) -> list[Stage]:
        if self.config.decay and self.config.rho > 0 and config.epochs == 1:
            warn("epochs: got 1, in which starft's falling weight is 0 from the start: decay=false")
        return super().stages(config)

    def setup(self, clip: Clip, classnames: Sequence[str], templates: Sequence[Any]) -> nn.Module:
        phrases = Phrases(Tokens(clip, method=self.name), self.phrases)
        return StarTowers(copy_clip(clip), clip, classnames, templates, phrases)

    def begin_step(self, module: nn.Module, epoch: int, epochs: int) -> None:
        assert isinstance(module, StarTowers)
        module.share = 1 - (epoch + 1) / epochs if self.config.decay else 1.0

    def loss(self, module: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        weight = self.config.rho * unwrapped(module).share
        if weight == 0:
            return super().loss(module, batch)
        image, text, scale, image_before, spurious, spurious_before = module(
            image=batch["image"], text=batch["text"], compare=True
        )
        label = batch["label"]
        contrastive = self.contrast(image, text, scale, label)
        spurious, spurious_before, every = rows_of_all(spurious, spurious_before, label)
        divergence = compare_logits(
            image,
            image_before,
            spurious,
            spurious_before,
            form="kl",
            exclude=label[:, None] == every if self.config.mask else None,
        )
        values = {"contrastive": contrastive.detach(), "spurious_kl": divergence.detach()}
        return contrastive + weight * divergence, values
