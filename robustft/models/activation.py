"""Which activation pre-trained weights need: QuickGELU, x·σ(1.702 x), or GELU.

Nothing in the tensors tells the two apart, and with the wrong one a model loads, runs and loses
points of accuracy. OpenAI's weights, and others trained from them or after their recipe (DFN,
MetaCLIP, some of LAION-400M's), need QuickGELU. So what comes with the weights decides:
open_clip's configuration of a tag; for a file, an open_clip_config.json beside it, its own header
or entries, or its name.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robustft.errors import InputError, warn
from robustft.models.tensor_files import read_metadata
from robustft.optional import require

_CONFIG = "open_clip_config.json"
_FLAGS = ("quick_gelu", "force_quick_gelu")
_MODEL_KEYS = ("model", "model_name", "name", "arch", "architecture")


def activation_options(name: str, pretrained: str | None) -> dict[str, Any]:
    """The arguments of open_clip's create_model with which `name` gets the weights' activation.

    Warns in one line if that is another than the architecture's own, or if a file does not say
    which it needs and open_clip has the architecture with both.
    Errors: InputError for a file whose loading would run code in it.
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
        wanted = _of_file(open_clip, Path(pretrained))
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


def _of_file(open_clip: Any, path: Path) -> bool | None:
    """What a checkpoint file says, None if nothing."""
    beside = path.parent / _CONFIG
    if beside.is_file():
        try:
            config = json.loads(beside.read_text(encoding="utf-8"))["model_cfg"]
            return bool(config.get("quick_gelu", False))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"pretrained: cannot read {beside}: {error!r}") from error
    stated: bool | None = None
    if path.suffix == ".safetensors":
        with contextlib.suppress(InputError):  # a damaged file is reported where it is loaded
            stated = _in(open_clip, read_metadata(path))
    elif path.suffix not in (".npz", ".npy"):  # big_vision's, which open_clip reads as arrays
        stated = _in(open_clip, _entries(path))
    if stated is None and "quickgelu" in path.name.lower().replace("_", "").replace("-", ""):
        return True
    return stated


def _entries(path: Path) -> Mapping[str, Any]:
    """A torch file's content, its tensors left on disk; nothing in it is run."""
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except OSError:
        raise
    except Exception as error:  # what reading a foreign pickle raises is open-ended
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if code is None:  # damaged, which is reported where it is loaded
            return {}
        raise InputError(
            f"pretrained: {str(path)!r} holds {code[1]}, which loading would run; expected a "
            "checkpoint of tensors alone"
        ) from error
    return content if isinstance(content, Mapping) else {}


def _is_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"PK"


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
