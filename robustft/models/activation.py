"""Which activation pre-trained weights need: QuickGELU, x·σ(1.702 x), or GELU.

Nothing in the tensors tells the two apart, and with the wrong one a model loads, runs and loses
points of accuracy. OpenAI's weights, and others trained from them or after their recipe (DFN,
MetaCLIP, some of LAION-400M's), need QuickGELU. So what comes with the weights decides:
open_clip's configuration of a tag; for a file, an open_clip_config.json beside it, its own header
or entries, or its name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robustft.errors import InputError, warn
from robustft.models.checkpoints import Checkpoint
from robustft.optional import require

_CONFIG = "open_clip_config.json"
_FLAGS = ("quick_gelu", "force_quick_gelu")
_MODEL_KEYS = ("model", "model_name", "name", "arch", "architecture")


def activation_options(
    name: str, pretrained: str | None, checkpoint: Checkpoint | None = None
) -> dict[str, Any]:
    """The arguments of open_clip's create_model with which `name` gets the weights' activation.

    checkpoint: what was read of `pretrained`, where that is a file.
    Warns in one line if the activation is another than the architecture's own, or if a file does
    not say which it needs and open_clip has the architecture with both.
    """
    open_clip = require("open_clip", extra="openclip")
    plain = name.replace("/", "-")
    config = None if ":" in name else open_clip.get_model_config(plain)
    if pretrained is None or config is None:  # a schema such as hf-hub: brings its configuration
        return {}
    own = bool(config.get("quick_gelu", False))
    tag = open_clip.get_pretrained_cfg(plain, pretrained)
    if tag:
        wanted = tag.get("quick_gelu")
    else:
        wanted = _of_file(open_clip, Path(pretrained), checkpoint)
        if wanted is None and not own and f"{plain}-quickgelu" in open_clip.list_models():
            warn(
                f"pretrained: {pretrained!r} does not say which activation it was trained with, "
                f"and {name} has GELU; if it was QuickGELU, name the model {name}-quickgelu"
            )
    if wanted is None or bool(wanted) == own:
        return {}
    taken, other = ("QuickGELU", "GELU") if wanted else ("GELU", "QuickGELU")
    warn(f"pretrained: {pretrained!r} needs {taken}, so {name} is built with it, not with {other}")
    return {"force_quick_gelu": True} if wanted else {"quick_gelu": False}


def _of_file(open_clip: Any, path: Path, checkpoint: Checkpoint | None) -> bool | None:
    """What a checkpoint file says, None if nothing."""
    beside = path.parent / _CONFIG
    if beside.is_file():
        try:
            config = json.loads(beside.read_text(encoding="utf-8"))["model_cfg"]
            return bool(config.get("quick_gelu", False))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"pretrained: cannot read {beside}: {error!r}") from error
    stated: bool | None = None
    if checkpoint is not None:
        stated = checkpoint.quick_gelu
        stated = _in(open_clip, checkpoint.entries) if stated is None else stated
    if stated is None and "quickgelu" in path.name.lower().replace("_", "").replace("-", ""):
        return True
    return stated


def _in(open_clip: Any, entries: Mapping[str, Any], depth: int = 3) -> bool | None:
    for key, value in entries.items():
        if key == "quick_gelu" or (key in _FLAGS and value):
            return value if isinstance(value, bool) else str(value).lower() in ("true", "1", "yes")
        if key in _MODEL_KEYS and isinstance(value, str):
            if "quickgelu" in value.lower():
                return True
            config = open_clip.get_model_config(value.replace("/", "-"))
            if config is not None:
                return bool(config.get("quick_gelu", False))
    if depth:
        for value in entries.values():
            if isinstance(value, Mapping):
                found = _in(open_clip, value, depth - 1)
                if found is not None:
                    return found
    return None
