"""Loading CLIP-like models: any of open_clip's, transformers' CLIP and SigLIP, or the built-in tiny
one."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import difflib
import functools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustft import choices
from robustft.errors import InputError
from robustft.models import hugging_face
from robustft.models.activation import activation_options
from robustft.models.adapter_files import base_of, check_base, fold
from robustft.models.checkpoints import Head, load_state, read_checkpoint
from robustft.optional import require

TINY_NAME = "robustft-tiny"
TINY_WEIGHTS = "glyphs"
# How open_clip's names begin of models that bring their weights along.
_BROUGHT = ("hf-hub:", "local-dir:")
#: The same, with those of transformers.
WITH_WEIGHTS = (*_BROUGHT, hugging_face.PREFIX)
# What tells architectures apart in open_clip's configurations.
_ARCHITECTURE = {
    "vision_cfg": ("image_size", "patch_size", "width", "layers", "timm_model_name"),
    "text_cfg": ("context_length", "vocab_size", "width", "layers", "hf_model_name"),
}
#: The dtype of each precision that is autocast.
AUTOCAST: dict[str, torch.dtype | None] = {
    name: None if dtype is None else getattr(torch, dtype)
    for name, dtype in choices.AUTOCAST.items()
}
#: All of open_clip's, of which some convert the weights.
PRECISIONS = (
    "fp32", "amp", "amp_bf16", "amp_bfloat16", "fp16", "bf16", "pure_fp16", "pure_bf16",
)  # fmt: skip


@dataclasses.dataclass
class Clip:
    """An open_clip model, or one of transformers' that is used like it, with what belongs to it.

    `preprocess_train` and `preprocess_val` turn a PIL image into a float tensor [3, H, W];
    `tokenizer` turns a list of n strings into an int64 tensor [n, context_length].
    """

    name: str
    pretrained: str | None
    model: nn.Module
    preprocess_train: Callable[[Any], torch.Tensor]
    preprocess_val: Callable[[Any], torch.Tensor]
    tokenizer: Callable[[list[str]], torch.Tensor]
    head: Head | None = None  # the one that came with the weights, of a classifier's file
    has_text: bool = True  # False: a classifier's file without text tower, which stayed random

    @classmethod
    def from_transformers(
        cls, model: nn.Module, processor: Any, *, aug_cfg: dict[str, Any] | None = None
    ) -> Clip:
        """Hugging Face's CLIPModel or SiglipModel, with AutoProcessor's processor, for all that is
        done here with open_clip's models: training, adapters, merging, heads, evaluation.

        The weights are shared with `model`, not copied. aug_cfg: open_clip's settings of training
        augmentation. `robustft.models.to_transformers` is the way back.
        Errors: InputError or InputTypeError for another kind of model or processor.
        """
        name = hugging_face.PREFIX + (getattr(model, "name_or_path", "") or type(model).__name__)
        return cls(name=name, pretrained=None, **hugging_face.parts(model, processor, aug_cfg))

    @property
    def logit_scale(self) -> float:
        """s = exp(model.logit_scale) = 1/τ, as it is now."""
        return float(scale_of(self.model))

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return next(self.model.parameters()).device

    @property
    def context_length(self) -> int:
        """Tokens a text."""
        return int(self.tokenizer([""]).shape[1])

    @functools.cached_property
    def embed_dim(self) -> int:
        """Width of the space that images and texts share."""
        model: Any = self.model
        with evaluating(model), torch.no_grad():
            return int(model.encode_text(self.tokenizer([""]).to(self.device)).shape[1])


def scale_of(model: nn.Module) -> torch.Tensor:
    """exp(model.logit_scale) as a 0-d float32 tensor; open_clip keeps it as [] or as [1]."""
    return model.get_parameter("logit_scale").detach().float().exp().reshape(())


class evaluating:
    """Put a module into eval mode for a `with` block, then give every part its own mode back."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __enter__(self) -> None:
        self._modes = [(part, part.training) for part in self.module.modules()]
        self.module.eval()

    def __exit__(self, *_: object) -> None:
        for part, mode in self._modes:
            part.training = mode


def load_clip(
    name: str,
    pretrained: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    cache_dir: str | Path | None = None,
    aug_cfg: dict[str, Any] | None = None,
    alpha: float | None = None,
    image_only: bool = False,
) -> Clip:
    """Load a model by open_clip's name (also "hf-hub:..." and "local-dir:...") in eval mode, or by
    "hf:" and the name of a CLIP or SigLIP model of Hugging Face's transformers, or its folder.

    `pretrained` is one of open_clip's tags for that model, a checkpoint file of any kind that
    robustft.models.checkpoints lists, a folder of adapters that say what they were made for,
    "hf-hub:..." or "local-dir:...", or None for random weights. Adapters are folded in, at the
    strength `alpha` (default: their own, or 0.5). image_only: take a classifier's file that has no
    text tower, too. "robustft-tiny" is the built-in model; its tag is "glyphs". `precision` and
    `aug_cfg` (training augmentation) are open_clip's. The activation is the one that the weights
    need, where they say so (robustft.models.activation): "ViT-B-16" with "openai" gets QuickGELU.

    Errors: InputError if there is no such model, tag or precision, or the checkpoint does not fit.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision: got {precision!r}, expected one of {', '.join(PRECISIONS)}")
    if name.startswith(hugging_face.PREFIX):
        return _from_hugging_face(name, pretrained, device, precision, cache_dir, aug_cfg, alpha)
    open_clip = require("open_clip", extra="openclip")
    source = None if pretrained is None else str(pretrained)
    if source is not None and source.startswith(_BROUGHT):
        name, source = _named_by(open_clip, name, source), None
    if name == TINY_NAME:
        from robustft.models import tiny

        tiny.register()
        if source == TINY_WEIGHTS:
            source = str(tiny.verify())
    base = None if source is None else base_of(source)
    adapters, source = (source, base.pretrained) if base is not None else (None, source)
    _check_name(open_clip, name, source)
    checkpoint, whole = None, True
    try:
        if base is not None:
            check_base(base, name)
        if source is not None and _is_checkpoint(open_clip, name, source):
            checkpoint = read_checkpoint(source)
        activation = activation_options(name, source, checkpoint)
        with _silent_about_random_weights(checkpoint is not None):
            model, preprocess_train, preprocess_val = open_clip.create_model_and_transforms(
                name,
                pretrained=source if checkpoint is None else None,
                device=device,
                precision=precision,
                cache_dir=None if cache_dir is None else str(cache_dir),
                aug_cfg=aug_cfg,
                **activation,
            )
        if checkpoint is not None:
            whole = load_state(model, checkpoint)
            if not whole and not image_only:
                raise InputError(
                    "it has no text tower, expected both (robustft import --text-from adds one)"
                )
        if adapters is not None:
            fold(model, adapters, alpha)
        elif checkpoint is not None and checkpoint.adapters:
            fold(model, checkpoint, alpha)
    except OSError:
        raise
    except Exception as error:  # what loading a foreign file raises is open-ended
        if pretrained is None:
            raise
        raise InputError(
            f"pretrained: {str(pretrained)!r} could not be loaded into {name}: {_brief(error)}"
        ) from error
    return Clip(
        name=name,
        pretrained=None if pretrained is None else str(pretrained),
        model=model.eval(),
        preprocess_train=preprocess_train,
        preprocess_val=preprocess_val,
        tokenizer=open_clip.get_tokenizer(name),
        head=None if checkpoint is None else checkpoint.head,
        has_text=whole,
    )


def _from_hugging_face(
    name: str,
    pretrained: str | Path | None,
    device: str | torch.device,
    precision: str,
    cache_dir: str | Path | None,
    aug_cfg: dict[str, Any] | None,
    alpha: float | None,
) -> Clip:
    base = None if pretrained is None else base_of(pretrained)
    if pretrained is not None and base is None:
        raise InputError(
            f"pretrained: got {str(pretrained)!r}, expected none, or a folder of adapters: {name} "
            "has weights"
        )
    if precision not in ("fp32", "amp", "amp_bf16", "amp_bfloat16"):
        raise InputError(f"precision: got {precision!r}, expected fp32 or amp for {name}")
    found = hugging_face.load(name.removeprefix(hugging_face.PREFIX), cache_dir=cache_dir)
    clip = dataclasses.replace(Clip.from_transformers(*found, aug_cfg=aug_cfg), name=name)
    if pretrained is not None and base is not None:
        try:
            check_base(base, name)
            fold(clip.model, pretrained, alpha)
        except InputError as error:
            raise InputError(f"pretrained: {str(pretrained)!r}: {error}") from error
        clip.pretrained = str(pretrained)
    clip.model.to(device)
    return clip


def copy_clip(clip: Clip) -> Clip:
    """The same model with weights of its own; tokenizer and transforms are shared."""
    return dataclasses.replace(clip, model=copy.deepcopy(clip.model))


def _is_checkpoint(open_clip: Any, name: str, source: str) -> bool:
    """Whether `source` is a file that robustft reads; big_vision's arrays are left to open_clip."""
    if name.startswith(WITH_WEIGHTS) or not Path(source).is_file():
        return False
    is_tag = bool(open_clip.get_pretrained_cfg(name.replace("/", "-"), source))
    return not is_tag and Path(source).suffix not in (".npz", ".npy")


def _named_by(open_clip: Any, name: str, source: str) -> str:
    """The model that a hub's or a local folder brings, which must be the one that was named."""
    try:
        brought = open_clip.get_model_config(source)
    except FileNotFoundError as error:
        raise InputError(f"pretrained: {source!r} has no {error.filename}") from error
    except Exception as error:  # of the network, the hub, or its JSON
        raise InputError(f"pretrained: {source!r} could not be read: {_brief(error)}") from error
    if name == source:
        return source
    own = None if name.startswith(WITH_WEIGHTS) else open_clip.get_model_config(name)
    if own is None:
        raise InputError(f"pretrained: got {source!r} for the model {name!r}, expected one of them")
    for part, keys in _ARCHITECTURE.items():
        there, here = brought.get(part, {}), own.get(part, {})
        for key in keys:
            if there.get(key) != here.get(key):
                raise InputError(
                    f"pretrained: {source!r} is another model than {name}: got {part}.{key} "
                    f"{there.get(key)}, expected {here.get(key)}; name the model {source}"
                )
    return source


@contextlib.contextmanager
def _silent_about_random_weights(silent: bool) -> Iterator[None]:
    """open_clip warns of a model that starts from random weights; here they are put in after."""
    root = logging.getLogger()

    def pass_on(record: logging.LogRecord) -> bool:
        return "No pretrained weights loaded" not in record.getMessage()

    if silent:
        root.addFilter(pass_on)
    try:
        yield
    finally:
        root.removeFilter(pass_on)


def _check_name(open_clip: Any, name: str, pretrained: str | None) -> None:
    if name.startswith(WITH_WEIGHTS):
        return
    known = open_clip.list_models()
    plain = name.replace("/", "-")
    if plain not in known:
        near = difflib.get_close_matches(plain, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"expected one of {known}"
        raise InputError(f"name: no model {name!r} in open_clip; {hint}")
    if pretrained is None or Path(pretrained).is_file():
        return
    tags = open_clip.list_pretrained_tags_by_model(plain)
    if name == TINY_NAME:
        tags = [TINY_WEIGHTS]
    if pretrained.lower().replace("-", "_") not in {tag.replace("-", "_") for tag in tags}:
        raise InputError(
            f"pretrained: {pretrained!r} is neither a file nor a tag of {name}, expected a "
            f"checkpoint file or one of {', '.join(tags) or '(no tags)'}"
        )


def _brief(error: BaseException) -> str:
    # A state dict's mismatch lists every tensor; its first lines say enough.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2])
    return text if len(text) <= 300 else text[:300] + " ..."
