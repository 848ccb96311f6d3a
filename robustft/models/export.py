"""Writing a model as open_clip and the Hugging Face hub read it.

A plain checkpoint is one safetensors file of the model's own tensors; its header says which
architecture and activation it needs. A hub folder holds the same file, open_clip_config.json (which
says all of it to open_clip), a model card, the tokenizer where it is one of Hugging Face's, and,
for a classifier whose head its text tower does not give, that head with its class names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from robustft.atomic import replacing_folder, write_json, write_text
from robustft.errors import InputError
from robustft.models.adapter_set import adapters_of
from robustft.models.checkpoints import Head
from robustft.models.clip import TINY_NAME, Clip
from robustft.models.hugging_face import to_transformers
from robustft.models.tensor_files import write_tensors
from robustft.optional import require

WEIGHTS = "open_clip_model.safetensors"
CONFIG = "open_clip_config.json"
CARD = "README.md"
HEAD = "classification_head.safetensors"
HEAD_CONFIG = "classification_head.json"
_KEY = "robustft.open_clip"
_PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")


def uses_quick_gelu(clip: Clip) -> bool:
    """Whether the model was built with QuickGELU."""
    return any(type(part).__name__ == "QuickGELU" for part in clip.model.modules())


def save_open_clip(path: str | Path, clip: Clip) -> None:
    """Write a checkpoint that open_clip's create_model takes as `pretrained`.

    Errors: InputError if the model carries adapters, lacks its text tower, or the path does not
    end in .safetensors.
    """
    target = Path(path)
    if target.suffix != ".safetensors":
        raise InputError(f"path: got {str(target)!r}, expected a name ending in .safetensors")
    _check(clip)
    write_tensors(target, clip.model.state_dict(), _KEY, _description(clip))


def save_hub_folder(folder: str | Path, clip: Clip, card: str, *, head: Head | None = None) -> None:
    """Write a folder that open_clip loads as "local-dir:FOLDER", and, uploaded, as "hf-hub:NAME".

    card: the text of README.md. The folder appears as a whole.

    Errors: InputError as for `save_open_clip`, for the built-in tiny model, which open_clip does
    not know, and if the folder is neither new nor empty.
    """
    target = Path(folder)
    _check(clip)
    if clip.name == TINY_NAME:
        raise InputError(f"model: got {TINY_NAME}, which open_clip alone cannot build")
    check_folder(target)
    config = open_clip_config(clip)
    with replacing_folder(target) as temporary:
        write_tensors(temporary / WEIGHTS, clip.model.state_dict(), _KEY, _description(clip))
        write_json(temporary / CONFIG, config)
        write_text(temporary / CARD, card)
        tokenizer: Any = clip.tokenizer
        if hasattr(tokenizer, "save_pretrained"):  # Hugging Face's; open_clip brings its own along
            tokenizer.save_pretrained(temporary)
        if head is not None:
            _write_head(temporary, head)


def save_transformers_folder(
    folder: str | Path, clip: Clip, card: str, *, head: Head | None = None
) -> None:
    """Write a folder that transformers' from_pretrained loads: model, processor and card.

    Errors: InputTypeError for a model that did not come from transformers; InputError for one with
    adapters, and if the folder holds what no such folder does.
    """
    target = Path(folder)
    model = to_transformers(clip.model)
    check_folder(target)
    prepare: Any = clip.preprocess_val
    with replacing_folder(target) as temporary:
        model.save_pretrained(temporary)
        prepare.processor.save_pretrained(temporary)
        write_text(temporary / CARD, card)
        if head is not None:
            _write_head(temporary, head)


def _write_head(folder: Path, head: Head) -> None:
    tensors = {"weight": head.weight}
    if head.bias is not None:
        tensors["bias"] = head.bias
    names = list(head.classnames)
    write_tensors(folder / HEAD, tensors, _KEY, {"classnames": names})
    write_json(folder / HEAD_CONFIG, {"classnames": names})


def check_folder(folder: str | Path) -> None:
    """InputError unless a folder is new or empty: it may be a repository, say, with its history."""
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"folder: {target} is there already, expected a new or an empty folder")


def open_clip_config(clip: Clip) -> dict[str, Any]:
    """open_clip's configuration of the model as it was built."""
    open_clip = require("open_clip", extra="openclip")
    config = open_clip.get_model_config(
        clip.name.replace("/", "-") if ":" not in clip.name else clip.name
    )
    if config is None:
        raise InputError(f"model: open_clip has no configuration of {clip.name!r}")
    config["quick_gelu"] = uses_quick_gelu(clip)
    visual: Any = clip.model.visual
    preprocessing = {k: v for k, v in visual.preprocess_cfg.items() if k in _PREPROCESSING}
    return {"model_cfg": config, "preprocess_cfg": preprocessing}


def _description(clip: Clip) -> dict[str, Any]:
    return {"quick_gelu": uses_quick_gelu(clip), "model": clip.name}


def _check(clip: Clip) -> None:
    if adapters_of(clip.model) is not None:
        raise InputError("model: it carries adapters, expected them merged (merged_state_dict)")
    if clip.name.startswith("hf:"):
        raise InputError(
            f"model: got {clip.name}, which open_clip does not build; expected one of open_clip's "
            "(robustft.models.to_transformers gives this one back)"
        )
    if not clip.has_text:
        raise InputError("model: it has no text tower, expected both (a classifier's file has one)")
