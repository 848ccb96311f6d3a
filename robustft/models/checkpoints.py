"""Checkpoints that others have written, as the tensors of an open_clip model and what comes along.

| written by | what is in the file |
|---|---|
| open_clip | a state dict, or "state_dict" beside epoch and optimizer; "module." before names |
| WiSE-FT, VRF | a pickled ImageClassifier: an image encoder without text transformer, its head |
| FLYP | a pickled CLIPEncoder: both towers of OpenAI's or open_clip's clip |
| R-Adapter | "state_dict": OpenAI's clip with adapters and their moving averages |
| OpenAI | a TorchScript archive |
| robustft | a saved classifier; any of the above as .safetensors |

Nothing in any of them is executed (robustft.models.pickles).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robustft.errors import InputError
from robustft.models.pickles import Record
from robustft.models.tensor_files import read_metadata
from robustft.models.torch_files import read_pickled
from robustft.models.weights import check_same_tensors
from robustft.optional import require

# Around the model that is meant: DistributedDataParallel's, torch.compile's, the papers' encoders'.
_WRAPPERS = ("module.", "_orig_mod.", "image_encoder.model.", "image_encoder.", "model.", "clip.")
_HEADS = ("classification_head.", "head.")
_STATES = ("state_dict", "model_state_dict", "model")
_ADAPTER = re.compile(r"(.+)\.adapter_(attn|mlp)(_cache)?\.(s|[fdu]\.weight)")
# Numbers that OpenAI's archives keep among the tensors, and masks that models make anew.
_NO_WEIGHTS = re.compile(r"(input_resolution|context_length|vocab_size|(.*\.)?attn_mask)")
_MOST, _DEEPEST = 20_000, 60  # modules in a model
_TEXT = re.compile(
    r"(text|transformer|token_embedding|ln_final)\.|positional_embedding$|text_projection|text_dec"
)


class Head(NamedTuple):
    """A classifier's head as a file brings it: weight [C, D], bias [C] or None, and its class
    names, empty where the file does not say them. Features are normalised before it."""

    weight: Tensor
    bias: Tensor | None
    classnames: tuple[str, ...] = ()


@dataclass
class Checkpoint:
    """A checkpoint's content under the names that open_clip gives it.

    kind: what wrote it, in words. state: the model's tensors. head: None for a model without one.
    adapters: of R-Adapter's release, (block,
    "attn" or "mlp") → {"s", "f.weight", …} of the live weights, and with "ema:" before them of the
    average. quick_gelu: which activation the file asks for, None where it does not say.
    """

    path: Path
    kind: str
    state: dict[str, Tensor]
    head: Head | None = None
    adapters: dict[tuple[str, str], dict[str, Tensor]] = field(default_factory=dict)
    quick_gelu: bool | None = None
    entries: Mapping[str, Any] = field(default_factory=dict)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read any of the files above.

    Errors: InputError, naming the file, where it is damaged, holds code, or no CLIP-like model;
    OSError where it cannot be read.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return _sorted_out(path, _safetensors(path), _header(path), None)
    content = read_pickled(path)
    model = _model_in(content)
    if isinstance(model, Record):
        try:
            tensors, kinds = _module(model)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        if not _normalises(model):
            raise InputError(
                f"{path}: its head takes features as they are, expected one of normalised features"
            )
        # A module brings its activations along as modules.
        quick = True if "QuickGELU" in kinds else False if "GELU" in kinds else None
        return _sorted_out(path, tensors, {}, quick, root=_class_name(model))
    if not isinstance(model, Mapping):
        raise InputError(f"{path}: holds a {type(content).__name__}, expected a model's tensors")
    tensors = {str(name): t for name, t in model.items() if isinstance(t, Tensor)}
    entries = content if isinstance(content, Mapping) and content is not model else {}
    return _sorted_out(path, tensors, entries, None)


def load_state(model: nn.Module, checkpoint: Checkpoint) -> bool:
    """Put a checkpoint's tensors into an open_clip model, converted as open_clip converts its own.

    Returns whether the text tower was among them: a classifier's file may lack it, and the model's
    own is then left as it is. Errors: InputError, naming the first tensors that do not fit.
    """
    own = model.state_dict()
    state = _converted(model, own, checkpoint.state)
    missing = [name for name in own if name not in state]
    whole = checkpoint.head is None or not missing or not all(map(_TEXT.match, missing))
    if not whole:
        state = {name: t for name, t in state.items() if not _TEXT.match(name)}
        own = {name: t for name, t in own.items() if not _TEXT.match(name)}
    check_same_tensors(own, state, type(model).__name__, str(checkpoint.path))
    model.load_state_dict(state, strict=whole)
    return whole


def _converted(
    model: nn.Module, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    factory = require("open_clip.factory", extra="openclip")
    convert = require("open_clip.convert", extra="openclip")
    state: dict[str, Tensor] = convert.convert_state_dict(model, dict(tensors))
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = factory.convert_to_custom_text_state_dict(state)
    for name in ("logit_scale", "logit_bias"):
        if name in own and name in state:
            state[name] = state[name].reshape(own[name].shape)
    if "logit_bias" in own:
        state.setdefault("logit_bias", torch.zeros_like(own["logit_bias"]))
    # Hugging Face's text models kept their positions among the tensors once.
    state = {k: t for k, t in state.items() if k in own or not k.endswith(".position_ids")}
    factory.resize_pos_embed(state, model)
    if {"positional_embedding", "text.positional_embedding"} & state.keys():
        factory.resize_text_pos_embed(state, model)
    return state


def _sorted_out(
    path: Path,
    tensors: dict[str, Tensor],
    entries: Mapping[str, Any],
    quick_gelu: bool | None,
    root: str = "",
) -> Checkpoint:
    """Tell the model, the head and the adapters apart, and take the wrappers' names off."""
    tensors = {name: t for name, t in tensors.items() if not _NO_WEIGHTS.fullmatch(name)}
    tensors = _unwrapped(tensors, _WRAPPERS[:2])
    head, found = None, None
    for prefix in _HEADS:
        if f"{prefix}weight" in tensors:
            found = prefix
            saved = entries.get("robustft.classifier")
            names = saved.get("classnames", ()) if isinstance(saved, dict) else ()
            weight, bias = tensors[f"{prefix}weight"], tensors.get(f"{prefix}bias")
            if len(weight):  # without a class, as training on pairs leaves it, it is none
                head = Head(weight, bias, tuple(map(str, names)))
            tensors = {k: t for k, t in tensors.items() if not k.startswith(prefix)}
            break
    tensors = _unwrapped(tensors, _WRAPPERS)
    adapters: dict[tuple[str, str], dict[str, Tensor]] = {}
    state = {}
    for name, tensor in tensors.items():
        matched = _ADAPTER.fullmatch(name)
        if matched is None:
            state[name] = tensor
            continue
        block, place, cache, key = matched.groups()
        adapters.setdefault((block, place), {})["ema:" * bool(cache) + key] = tensor
    if not any(name.startswith("visual.") or "image_encoder." in name for name in state):
        some = ", ".join(list(tensors)[:3]) or "no tensor"
        raise InputError(f"{path}: holds {some}, expected the tensors of a CLIP-like model")
    kind = "clip"
    if adapters:
        kind = "r-adapter"
        quick_gelu = True if quick_gelu is None else quick_gelu  # it is built on OpenAI's clip
    elif found == "head.":
        kind = "robustft classifier"
    elif head is not None:
        kind = "classifier"
    elif root:
        kind = root
    return Checkpoint(path, kind, state, head, adapters, quick_gelu, entries)


def _unwrapped(tensors: dict[str, Tensor], prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    changed = True
    while changed and tensors:
        changed = False
        for prefix in prefixes:
            if all(name.startswith(prefix) for name in tensors):
                tensors = {name[len(prefix) :]: t for name, t in tensors.items()}
                changed = True
    return tensors


def _safetensors(path: Path) -> dict[str, Tensor]:
    safetensors = require("safetensors", extra="openclip")
    try:
        tensors: dict[str, Tensor] = require("safetensors.torch", extra="openclip").load_file(path)
    except safetensors.SafetensorError as error:
        raise InputError(f"{path}: not a whole safetensors file ({error})") from error
    return tensors


def _header(path: Path) -> dict[str, Any]:
    """What a safetensors file says of itself, JSON in it read."""
    found: dict[str, Any] = {}
    for key, text in read_metadata(path).items():
        try:
            found[key] = json.loads(text) if text.startswith("{") else text
        except (ValueError, RecursionError):
            found[key] = text
    return found


def _model_in(content: Any) -> Any:
    """The module, or the mapping of tensors, that a file is about."""
    for _ in range(4):
        if not isinstance(content, Mapping):
            return content
        found = (content.get(key) for key in _STATES)
        inner = next((value for value in found if isinstance(value, dict | Record)), None)
        if inner is None:
            return content
        content = inner
    return content


def _module(root: Record) -> tuple[dict[str, Tensor], set[str]]:
    """A pickled module's tensors by name, and the names of the classes in it."""
    tensors: dict[str, Tensor] = {}
    kinds: set[str] = set()
    waiting, seen = [("", root, 0)], 0
    while waiting:
        prefix, record, depth = waiting.pop()
        seen += 1
        if depth > _DEEPEST or seen > _MOST:
            raise InputError(f"holds more than {_MOST} modules, or modules within modules for ever")
        kinds.add(_class_name(record))
        for name, value in _parts_of(record):
            if isinstance(value, Tensor):
                tensors[f"{prefix}{name}"] = value
            elif isinstance(value, Record):
                waiting.append((f"{prefix}{name}.", value, depth + 1))
    return tensors, kinds


def _parts_of(record: Record) -> Iterator[tuple[str, Any]]:
    """A module's tensors and modules; of TorchScript's objects, all that they have."""
    attributes = record.attributes()
    if "_parameters" not in attributes:
        yield from ((str(name), value) for name, value in attributes.items())
        return
    passing = attributes.get("_non_persistent_buffers_set") or ()
    for group in ("_parameters", "_buffers", "_modules"):
        found = attributes.get(group)
        for name, value in found.items() if isinstance(found, dict) else ():
            if group != "_buffers" or name not in passing:
                yield str(name), value


def _normalises(root: Record) -> bool:
    """Whether the head of WiSE-FT's classifier, if this is one, normalises features first."""
    modules = root.attributes().get("_modules")
    head = modules.get("classification_head") if isinstance(modules, dict) else None
    return not isinstance(head, Record) or bool(head.attributes().get("normalize", True))


def _class_name(record: Record) -> str:
    return str(record.kind).rpartition(".")[2]
