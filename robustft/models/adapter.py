"""R-Adapter (Kim et al., ECCV 2024, arXiv 2408.05749): linear adapters that fold into the model.

After the attention and the MLP of every block, on the sub-layer's output Y (rows are tokens):

    h(Y) = Y + s · γ/(1−p) · Y Fᵀ        γ ~ Bernoulli(1−p) in training; γ/(1−p) = 1 otherwise

F is d×d and starts at zero, or, for a rank r < d, F = up · down with `up` at zero, so an adapted
model starts as the pre-trained one. s is a scalar, 0.1 at first. Everything else is frozen. An
exponential moving average (the shadow) follows F and s, and evaluation uses it. Because h is
linear it folds into the layer below, at any strength α:  W ← (I + α s F) W,  b ← (I + α s F) b.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustft.errors import InputError, InputTypeError
from robustft.models.sites import TOWERS
from robustft.scalars import real

DROP_MODES = ("sample", "module", "token")
EMA_TARGETS = ("factors", "product")
#: The adapters' strength in evaluation and merging unless one is given; the paper's for classes.
ALPHA = 0.5


@dataclass(frozen=True)
class AdapterConfig:
    """How adapters are built; the fields are the arguments of `add_adapters`."""

    image_rank: int | None = None
    text_rank: int | None = None
    drop: float = 0.2
    drop_mode: str = "sample"
    scale: float = 0.1
    learn_scale: bool = True
    ema: float = 0.999
    ema_of: str = "factors"
    towers: tuple[str, ...] = TOWERS

    def __post_init__(self) -> None:
        for name in ("image_rank", "text_rank"):
            rank = getattr(self, name)
            if rank is None:
                continue
            if not isinstance(rank, int) or isinstance(rank, bool):
                raise InputTypeError(f"{name}: got {rank!r}, expected an integer or None")
            if rank < 1:
                raise InputError(f"{name}: got {rank}, expected at least 1, or None for full rank")
        for name in ("drop", "ema"):
            value = real(name, getattr(self, name))
            if not 0.0 <= value < 1.0:
                raise InputError(f"{name}: got {value}, expected a number in [0, 1)")
        if self.drop_mode not in DROP_MODES:
            raise InputError(f"drop_mode: got {self.drop_mode!r}, expected one of {DROP_MODES}")
        if self.ema_of not in EMA_TARGETS:
            raise InputError(f"ema_of: got {self.ema_of!r}, expected one of {EMA_TARGETS}")
        scale = real("scale", self.scale)
        if not math.isfinite(scale) or scale == 0.0:
            raise InputError(f"scale: got {scale}, expected a finite number other than 0")
        if not isinstance(self.learn_scale, bool):
            raise InputTypeError(f"learn_scale: got {self.learn_scale!r}, expected true or false")
        unknown = sorted(set(self.towers) - set(TOWERS))
        if unknown or not self.towers:
            raise InputError(f"towers: got {self.towers!r}, expected some of {TOWERS}")

    def rank_of(self, tower: str) -> int | None:
        """The rank asked for in one tower; None is full rank."""
        return self.image_rank if tower == "image" else self.text_rank


class Adapter(nn.Module):
    """One adapter of a given width: a learned linear map added to its input, with its shadow.

    Parameters: `weight` [d, d], or `down` [r, d] and `up` [d, r] when r < d; `scale` []. The
    shadow is in the buffers `ema_weight` or `ema_down` and `ema_up`, `ema_scale`; or, for
    ema_of="product", in `ema_product` [d, d] = s·F. Float32 whatever the model's precision, as
    the small steps of the average would be lost in 16 bits.
    """

    def __init__(self, width: int, rank: int | None, config: AdapterConfig, batch_dim: int) -> None:
        super().__init__()
        self.config = config
        self.width = width
        self.batch_dim = batch_dim
        self.use_ema = True
        self.alpha = ALPHA  # strength in evaluation
        if rank is None or rank >= width:
            self.factors: tuple[str, ...] = ("weight",)
            self.weight = nn.Parameter(torch.zeros(width, width))
        else:
            self.factors = ("down", "up")
            self.down = nn.Parameter(nn.init.xavier_uniform_(torch.empty(rank, width)))
            self.up = nn.Parameter(torch.zeros(width, rank))
        self.scale = nn.Parameter(torch.tensor(config.scale), requires_grad=config.learn_scale)
        if config.ema_of == "product":
            self.register_buffer("ema_product", torch.zeros(width, width))
        else:
            for name in (*self.factors, "scale"):
                self.register_buffer(f"ema_{name}", getattr(self, name).detach().clone())

    def forward(self, y: Tensor) -> Tensor:
        """h(y) for y [batch, tokens, width], or [tokens, batch, width] where batch_dim is 1."""
        factors, strength = self._terms(live=self.training or not self.use_ema)
        delta = y
        for factor in factors:
            delta = F.linear(delta, factor.to(y.dtype))
        if strength is not None:
            delta = delta * strength
        if not self.training:
            return y + (delta if self.alpha == 1.0 else self.alpha * delta)
        if self.config.drop > 0.0:
            delta = delta * self._gate(delta)
        return y + delta

    @torch.no_grad()
    def fold(self, matrix: Tensor, alpha: float) -> Tensor:
        """(I + α s F) · matrix, for a matrix [d, n], with the weights that evaluation uses."""
        factors, strength = self._terms(live=not self.use_ema)
        delta = matrix
        for factor in factors:
            delta = factor.to(matrix) @ delta
        if strength is not None:
            delta = delta * strength.to(matrix)
        return matrix + alpha * delta

    @torch.no_grad()
    def update_ema(self) -> None:
        """Move the shadow towards the live weights: shadow ← m·shadow + (1−m)·live."""
        step = 1.0 - self.config.ema
        if self.config.ema_of == "product":
            self.get_buffer("ema_product").lerp_(self.scale * self._product(), step)
        else:
            for name in (*self.factors, "scale"):
                self.get_buffer(f"ema_{name}").lerp_(getattr(self, name), step)

    def _terms(self, *, live: bool) -> tuple[list[Tensor], Tensor | None]:
        """The matrices to apply in turn, and the scalar after them."""
        if live:
            return [getattr(self, name) for name in self.factors], self.scale
        if self.config.ema_of == "product":
            return [self.get_buffer("ema_product")], None
        factors = [self.get_buffer(f"ema_{name}") for name in self.factors]
        return factors, self.get_buffer("ema_scale")

    def _product(self) -> Tensor:
        return self.weight if self.factors == ("weight",) else self.up @ self.down

    def _gate(self, y: Tensor) -> Tensor:
        """γ/(1−p), broadcastable to y: one for each sample, for each token position, or for all."""
        shape = [1] * y.ndim
        if self.config.drop_mode == "sample":
            shape[self.batch_dim] = y.shape[self.batch_dim]
        elif self.config.drop_mode == "token":
            shape[1 - self.batch_dim] = y.shape[1 - self.batch_dim]
        keep = 1.0 - self.config.drop
        return (torch.rand(shape, device=y.device) < keep).to(y.dtype) / keep

    def extra_repr(self) -> str:
        rank = "full" if self.factors == ("weight",) else self.down.shape[0]
        return f"width={self.width}, rank={rank}, drop={self.config.drop}"
