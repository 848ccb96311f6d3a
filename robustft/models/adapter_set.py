"""A model with adapters: put into it, found again, taken out, and folded into its weights.

open_clip is not changed: an adapter is a child, named `r_adapter`, of the module it adapts, and
a forward hook on that module calls it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from robustft.errors import InputError, InputTypeError
from robustft.models.adapter import Adapter, AdapterConfig
from robustft.models.sites import TOWERS, Site, find_sites
from robustft.models.weights import check_same_tensors

_CHILD = "r_adapter"
_ATTRIBUTE = "_r_adapters"


class AdapterSet:
    """All adapters of one model: their parameters, shadow and strength.

    Made by `add_adapters`; `adapters_of` finds it again on a copy of the model.
    """

    def __init__(self, model: nn.Module, config: AdapterConfig, sites: Sequence[Site]) -> None:
        self.model = model
        self.config = config
        self.sites = tuple(sites)
        self.adapters: dict[str, Adapter] = {}
        self._handles: list[RemovableHandle] = []
        self._was_trainable = [n for n, p in model.named_parameters() if p.requires_grad]
        model.requires_grad_(False)
        for site in self.sites:
            host = model.get_submodule(site.host)
            adapter = Adapter(site.width, config.rank_of(site.tower), config, site.batch_dim)
            adapter.to(next(host.parameters()).device).train(host.training)
            host.add_module(_CHILD, adapter)
            self._handles.append(host.register_forward_hook(_call_adapter))
            self.adapters[site.name] = adapter
        object.__setattr__(model, _ATTRIBUTE, self)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The trainable parameters with their names, such as "transformer.resblocks.0.mlp.up"."""
        for name, adapter in self.adapters.items():
            for key, parameter in adapter.named_parameters():
                if parameter.requires_grad:
                    yield f"{name}.{key}", parameter

    def parameters(self) -> Iterator[nn.Parameter]:
        """The trainable parameters."""
        for _, parameter in self.named_parameters():
            yield parameter

    def param_groups(self, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Two optimiser groups: the matrices with `weight_decay`, the scalars without."""
        matrices = [p for p in self.parameters() if p.ndim >= 2]
        scalars = [p for p in self.parameters() if p.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": weight_decay},
            {"params": scalars, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    @property
    def num_parameters(self) -> int:
        """How many numbers are trained."""
        return sum(parameter.numel() for parameter in self.parameters())

    def update_ema(self) -> None:
        """Let the shadow follow the live weights by one step; call it after the optimiser's."""
        for adapter in self.adapters.values():
            adapter.update_ema()

    @property
    def use_ema(self) -> bool:
        """Whether evaluation uses the shadow (the default) or the live weights."""
        return all(adapter.use_ema for adapter in self.adapters.values())

    @use_ema.setter
    def use_ema(self, value: bool) -> None:
        for adapter in self.adapters.values():
            adapter.use_ema = bool(value)

    @contextlib.contextmanager
    def live(self) -> Iterator[None]:
        """Evaluate, merge and compare with the live weights inside this block."""
        before = self.use_ema
        self.use_ema = False
        try:
            yield
        finally:
            self.use_ema = before

    @property
    def alpha(self) -> float:
        """Strength of the adapters in evaluation and merging: 0 is the pre-trained model, 1 the
        adapters as they were trained, 0.5 the default. Training is not affected.
        """
        return next(iter(self.adapters.values())).alpha

    @alpha.setter
    def alpha(self, value: float) -> None:
        value = _strength(value)
        for adapter in self.adapters.values():
            adapter.alpha = value

    def state_dict(self) -> dict[str, Tensor]:
        """Live weights and shadow of every adapter, under the names of the sub-layers."""
        return {
            f"{name}.{key}": tensor
            for name, adapter in self.adapters.items()
            for key, tensor in adapter.state_dict().items()
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over weights and shadow. InputError, and nothing changed, if they do not fit."""
        own = self.state_dict()
        check_same_tensors(own, state, "the adapters", "state")
        for name, tensor in own.items():
            tensor.copy_(state[name])

    def remove(self) -> None:
        """Take the adapters out again: the model is as it was before `add_adapters`."""
        for handle in self._handles:
            handle.remove()
        for site in self.sites:
            delattr(self.model.get_submodule(site.host), _CHILD)
        delattr(self.model, _ATTRIBUTE)
        for name in self._was_trainable:
            self.model.get_parameter(name).requires_grad_(True)


def add_adapters(
    model: nn.Module,
    *,
    rank: int | None = None,
    image_rank: int | None = None,
    text_rank: int | None = None,
    drop: float = 0.2,
    drop_mode: str = "sample",
    scale: float = 0.1,
    learn_scale: bool = True,
    ema: float = 0.999,
    towers: Sequence[str] = TOWERS,
    ema_of: str = "factors",
) -> AdapterSet:
    """Freeze an open_clip model and put an adapter after every attention and MLP (2408.05749).

    `rank` serves both towers unless `image_rank` or `text_rank` says otherwise; None, or a rank of
    at least the width, is full rank. `drop` is p; `drop_mode` draws it once for each adapter and
    sample ("sample"), for each adapter ("module"), or for each adapter and token position
    ("token"). `ema` is m, and `ema_of` whether the average is taken of the factors or of their
    product s·F.

    Errors: InputError, before anything is changed, if the model cannot be adapted, has adapters
    already, or an argument is out of range.
    """
    config = AdapterConfig(
        image_rank=rank if image_rank is None else image_rank,
        text_rank=rank if text_rank is None else text_rank,
        drop=drop,
        drop_mode=drop_mode,
        scale=scale,
        learn_scale=learn_scale,
        ema=ema,
        ema_of=ema_of,
        towers=(towers,) if isinstance(towers, str) else tuple(towers),
    )
    return attach(model, config)


def attach(model: nn.Module, config: AdapterConfig) -> AdapterSet:
    """`add_adapters` with its arguments in one object."""
    if not isinstance(model, nn.Module):
        raise InputTypeError(f"model: got {type(model).__name__}, expected an open_clip model")
    if any(isinstance(module, Adapter) for module in model.modules()):
        raise InputError("model: it has adapters already, expected none; call .remove() first")
    return AdapterSet(model, config, find_sites(model, config.towers))


def adapters_of(model: nn.Module) -> AdapterSet | None:
    """The adapters of a model, or None: on a deep copy, the copy's own."""
    return getattr(model, _ATTRIBUTE, None)


def plain_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The model's state dict without adapters: names and values of the model as it was loaded."""
    return {k: v for k, v in model.state_dict().items() if f".{_CHILD}." not in k}


@torch.no_grad()
def merged_state_dict(
    model: nn.Module, adapters: AdapterSet, alpha: float | None = None
) -> dict[str, Tensor]:
    """The adapters folded into a state dict for the unadapted model: W ← (I + α s F) W, also b.

    alpha: None for the adapters' own strength, `adapters.alpha`, as in evaluation.

    α = 0 is the pre-trained model, bit for bit, and 1 the adapted one; since the map is linear in
    α, this is WiSE-FT's interpolation between the two. All tensors are copies.

    Errors: InputError for adapters of another model, or an α that is not finite.
    """
    alpha = _strength(adapters.alpha if alpha is None else alpha)
    if adapters_of(model) is not adapters:
        raise InputError("adapters: they belong to another model than the one given")
    state = {name: tensor.detach().clone() for name, tensor in plain_state_dict(model).items()}
    if alpha == 0.0:
        return state
    for site in adapters.sites:
        adapter = adapters.adapters[site.name]
        for name in (f"{site.linear}.weight", f"{site.linear}.bias"):
            if name in state:
                tensor = state[name]
                wide = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
                folded = adapter.fold(wide.reshape(site.width, -1), alpha)
                state[name] = folded.reshape(tensor.shape).to(tensor.dtype)
    return state


def _call_adapter(host: nn.Module, _: Any, output: Any) -> Any:
    # Finds the adapter through its host, so that a deep copy of the model calls its own adapters.
    adapter = host.get_submodule(_CHILD)
    if isinstance(output, tuple):  # nn.MultiheadAttention returns its attention weights as well
        return (adapter(output[0]), *output[1:])
    return adapter(output)


def _strength(alpha: float) -> float:
    value = float(alpha)
    if not math.isfinite(value):
        raise InputError(f"alpha: got {alpha}, expected a finite number")
    return value
