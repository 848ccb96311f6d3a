"""Where R-Adapter attaches: the output of the attention and of the MLP of each transformer block.

The adapter must see the sub-layer's output before any layer scale, because only there does it fold
into the linear layer that made it. So it sits on that linear layer itself, except for
`nn.MultiheadAttention`, which uses the weight of its `out_proj` without calling it: there the
whole attention module is the host.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from robustft.errors import InputError, InputTypeError

TOWERS = ("image", "text")

# Classes are matched by name, so that neither open_clip nor timm is imported to look for them.
_BLOCKS = {
    "open_clip.transformer.ResidualAttentionBlock",
    "open_clip.transformer.CustomResidualAttentionBlock",
    "timm.models.vision_transformer.Block",
    "timm.models.eva.EvaBlock",
    "transformers.models.clip.modeling_clip.CLIPEncoderLayer",
    "transformers.models.siglip.modeling_siglip.SiglipEncoderLayer",
}
# What a block calls its sub-layers, and these the linear layer that they end in.
_SUBLAYERS = (("attn", "self_attn"), ("mlp",))
_LAST_LINEAR = {
    "attn": ("out_proj", "proj"),
    "self_attn": ("out_proj",),
    "mlp": ("c_proj", "fc2", "w2"),
}


@dataclass(frozen=True)
class Site:
    """One place for an adapter."""

    name: str  # the sub-layer, e.g. "visual.transformer.resblocks.0.mlp"
    host: str  # the module whose output is adapted
    linear: str  # the linear layer that the adapter folds into
    tower: str  # "image" or "text"
    width: int
    batch_dim: int  # 0 for [batch, tokens, width], 1 for [tokens, batch, width]


def find_sites(model: nn.Module, towers: Sequence[str] = TOWERS) -> list[Site]:
    """The places for adapters in the requested towers of an open_clip model, in model order.

    A model of timm's is an image tower.

    Errors: InputError if a tower is unknown or has no block, or a block has no output layer, that
    can be adapted; the message says what was found instead.
    """
    if isinstance(towers, str) or not towers or any(tower not in TOWERS for tower in towers):
        raise InputError(f"towers: got {towers!r}, expected one or both of {TOWERS}")
    sites: list[Site] = []
    for tower in TOWERS:
        if tower in towers:
            sites += _tower_sites(model, tower)
    return sites


def _tower_sites(model: nn.Module, tower: str) -> list[Site]:
    prefix, module = _tower(model, tower)
    sites = []
    for name, block in module.named_modules(prefix=prefix):
        if _is_block(block):
            for names in _SUBLAYERS:
                kind = next(kind for kind in names if hasattr(block, kind))
                sites.append(_site(name, block, kind, tower))
    if not sites:
        raise InputError(
            f"model: the {tower} tower ({type(module).__name__}) has no transformer block that "
            f"R-Adapter can adapt; found {_inventory(module)}; expected open_clip's "
            "residual attention blocks, timm's ViT or EVA blocks, or transformers' CLIP or SigLIP"
        )
    return sites


def _tower(model: nn.Module, tower: str) -> tuple[str, nn.Module]:
    # open_clip.CLIP spreads its text tower over the model itself; the other classes keep `.text`.
    for name in ("visual",) if tower == "image" else ("text", "transformer"):
        module = getattr(model, name, None)
        if isinstance(module, nn.Module):
            return name, module
    if tower == "image" and type(model).__module__.startswith("timm."):
        return "", model  # an image classifier
    raise InputTypeError(
        f"model: {type(model).__name__} has no {tower} tower, expected an open_clip model with "
        ".visual and with .text or .transformer, or timm's with towers=('image',)"
    )


def _is_block(module: nn.Module) -> bool:
    return any(f"{c.__module__}.{c.__qualname__}" in _BLOCKS for c in type(module).__mro__)


def _site(block_name: str, block: nn.Module, kind: str, tower: str) -> Site:
    layer = getattr(block, kind)
    name = f"{block_name}.{kind}"
    for attribute in _LAST_LINEAR[kind]:
        linear = getattr(layer, attribute, None)
        if isinstance(linear, nn.Linear):
            break
    else:
        raise InputError(
            f"model: {name} ({type(layer).__name__}) ends in no linear layer that an adapter "
            f"could fold into, expected one named {' or '.join(_LAST_LINEAR[kind])}"
        )
    linear_name = f"{name}.{attribute}"
    return Site(
        name=name,
        host=name if isinstance(layer, nn.MultiheadAttention) else linear_name,
        linear=linear_name,
        tower=tower,
        width=linear.out_features,
        # Only nn.MultiheadAttention can run tokens first; its block's MLP then does as well.
        batch_dim=0 if getattr(getattr(block, "attn", None), "batch_first", True) else 1,
    )


def _inventory(module: nn.Module) -> str:
    composed = (m for m in module.modules() if m is not module and any(True for _ in m.children()))
    names = Counter(type(m).__name__ for m in composed)
    for container in ("Sequential", "ModuleList"):
        names.pop(container, None)
    return ", ".join(f"{count} x {name}" for name, count in names.most_common(3)) or "no blocks"
