"""Models of Hugging Face's transformers, CLIP's and SigLIP's families, used as open_clip's are.

The model's parts are held under open_clip's names, `visual` and `text`, with `encode_image`,
`encode_text` and `logit_scale`; the parts are the model's own, so that training it trains them.
Tensors are called as in transformers, with "visual." or "text." before them; `to_transformers`
takes that away again.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustft.errors import InputError, InputTypeError
from robustft.optional import require

#: How names begin of models that transformers loads.
PREFIX = "hf:"
_PREFIXES = ("visual.", "text.")
# model_type in transformers → the names of its projections, and whether padding may be seen: CLIP's
# text tower looks backwards from the end of the text, SigLIP's sees all of a row.
_FAMILIES = {
    "clip": ("visual_projection", "text_projection", False),
    "siglip": (None, None, True),
}


class Tower(nn.Module):
    """One of the model's towers and, where there is one, its projection to the shared space."""

    def __init__(self, model: nn.Module, part: str, projection: str | None) -> None:
        super().__init__()
        self.part, self.projection = part, projection
        self.add_module(part, model.get_submodule(part))
        if projection is not None:
            self.add_module(projection, model.get_submodule(projection))

    def forward(self, values: Tensor) -> Tensor:
        """Features [B, D] of images [B, 3, H, W] or tokens [B, L]."""
        pooled = self.get_submodule(self.part)(values).pooler_output
        return pooled if self.projection is None else self.get_submodule(self.projection)(pooled)


class TransformersModel(nn.Module):
    """A CLIPModel or SiglipModel with the interface of open_clip's models, sharing its weights."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        image, text, _ = _family(model)
        self.visual = Tower(model, "vision_model", image)
        self.text = Tower(model, "text_model", text)
        self.logit_scale = model.logit_scale
        if hasattr(model, "logit_bias"):
            self.logit_bias = model.logit_bias
        self.kind, self.config = type(model), model.config

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """Image features [B, D] of images [B, 3, H, W]."""
        features = self.visual(image)
        return nn.functional.normalize(features, dim=-1) if normalize else features

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """Text features [B, D] of tokens int64 [B, L]."""
        features = self.text(text)
        return nn.functional.normalize(features, dim=-1) if normalize else features

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unit features of both, and the scale, as open_clip's models answer."""
        features = self.encode_image(image, True), self.encode_text(text, True)
        return (*features, self.logit_scale.exp())

    def set_grad_checkpointing(self, enable: bool = True, **_: Any) -> None:
        """Trade time for memory: keep no activations inside the blocks."""
        towers: tuple[Any, ...] = (self.visual.vision_model, self.text.text_model)
        verb = "checkpointing_enable" if enable else "checkpointing_disable"
        for tower in towers:  # transformers 5 has begun to call it activation checkpointing
            names = (f"activation_{verb}", f"gradient_{verb}")
            switch = next((getattr(tower, n) for n in names if hasattr(tower, n)), None)
            if switch is None:  # CLIP's towers up to some release of transformers 5
                raise InputError(
                    f"grad_checkpointing: got a {type(tower).__name__}, whose release of "
                    "transformers has none for a tower alone, expected a newer transformers"
                )
            switch()


class Preprocess:
    """A PIL image as the model's own processor prepares it: [3, H, W], without random parts."""

    deterministic = True

    def __init__(self, processor: Any) -> None:
        self.processor = processor  # whole, as to_transformers' model needs it beside it

    def __call__(self, image: Any) -> Tensor:
        pixels = self.processor.image_processor
        return pixels(images=image.convert("RGB"), return_tensors="pt")["pixel_values"][0]

    def __repr__(self) -> str:
        return f"Preprocess({self.processor.image_processor})"


class Tokenizer:
    """n strings as int64 [n, length], by the model's own tokenizer.

    Where the model does not see what follows a text, zeros follow it, as with open_clip's.
    """

    def __init__(self, tokenizer: Any, length: int, *, padding_is_seen: bool) -> None:
        self.tokenizer, self.length, self.padding_is_seen = tokenizer, length, padding_is_seen
        self.sot_token_id, self.eot_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id

    def __call__(self, texts: list[str]) -> Tensor:
        rows = self.tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=self.length,
            return_attention_mask=True,
            return_tensors="pt",
        )
        tokens = rows["input_ids"]
        if self.padding_is_seen:
            return tokens
        return tokens.masked_fill(rows["attention_mask"] == 0, 0)


def parts(model: Any, processor: Any, aug_cfg: dict[str, Any] | None = None) -> dict[str, Any]:
    """The fields of a `Clip` but its names.

    Errors: InputError for a model of another family; InputTypeError for a processor without image
    processor or tokenizer.
    """
    *_, padding_is_seen = _family(model)
    for name in ("image_processor", "tokenizer"):
        if not hasattr(processor, name):
            raise InputTypeError(
                f"processor: got {type(processor).__name__}, expected one with an image_processor "
                "and a tokenizer (AutoProcessor's)"
            )
    open_clip = require("open_clip", extra="openclip")
    pixels = processor.image_processor
    length = int(model.config.text_config.max_position_embeddings)
    return {
        "model": TransformersModel(model).eval(),
        "preprocess_train": open_clip.image_transform(
            int(model.config.vision_config.image_size),
            is_train=True,
            mean=tuple(pixels.image_mean),
            std=tuple(pixels.image_std),
            aug_cfg=aug_cfg,
        ),
        "preprocess_val": Preprocess(processor),
        "tokenizer": Tokenizer(processor.tokenizer, length, padding_is_seen=padding_is_seen),
    }


def load(name: str, *, cache_dir: str | Path | None = None) -> tuple[Any, Any]:
    """Model and processor of a name on Hugging Face or a folder that `save_pretrained` wrote.

    Weights are float32. Errors: InputError for a model of another family, and what transformers
    raises (OSError) where there is none of this name.
    """
    transformers = require("transformers", extra="hf")
    where = {} if cache_dir is None else {"cache_dir": str(cache_dir)}
    config = transformers.AutoConfig.from_pretrained(name, **where)
    _family_of(config)
    model = transformers.AutoModel.from_pretrained(name, dtype=torch.float32, **where)
    return model, transformers.AutoProcessor.from_pretrained(name, **where)


def to_transformers(model: nn.Module) -> Any:
    """A new CLIPModel or SiglipModel of transformers with the weights of `model` (without adapters:
    merge them first). Its `save_pretrained(folder)` writes what `from_pretrained` reads.

    Errors: InputTypeError for a model that did not come from transformers; InputError for one with
    adapters.
    """
    if not isinstance(model, TransformersModel):
        raise InputTypeError(
            f"model: got {type(model).__name__}, expected one that came from transformers"
        )
    from robustft.models.adapter_set import adapters_of

    if adapters_of(model) is not None:
        raise InputError("model: got one with adapters, expected them merged and removed")
    state = {}
    for name, tensor in model.state_dict().items():
        own = next((name.removeprefix(p) for p in _PREFIXES if name.startswith(p)), name)
        state[own] = tensor.detach().clone()
    made = model.kind(copy.deepcopy(model.config))
    made.load_state_dict(state)
    return made.eval()


def _family(model: Any) -> tuple[str | None, str | None, bool]:
    config = getattr(model, "config", None)
    parts = ("vision_model", "text_model", "logit_scale")
    if not isinstance(model, nn.Module) or not all(hasattr(model, part) for part in parts):
        raise InputTypeError(
            f"model: got {type(model).__name__}, expected transformers' CLIPModel or SiglipModel"
        )
    return _family_of(config)


def _family_of(config: Any) -> tuple[str | None, str | None, bool]:
    kind = getattr(config, "model_type", None)
    if kind not in _FAMILIES:
        raise InputError(
            f"model: got one of transformers' family {kind!r}, expected one of "
            f"{', '.join(_FAMILIES)}"
        )
    return _FAMILIES[kind]
