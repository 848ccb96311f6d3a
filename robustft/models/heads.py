"""Zero-shot heads: class weights from class names, templates and the text tower."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustft.errors import InputError, InputTypeError
from robustft.extras import require
from robustft.models.clip import evaluating

Template = str | Callable[[str], str]
Tokenizer = Callable[[list[str]], Tensor]
TEMPLATE_NAMES = ("openai", "simple", "photo")


@torch.no_grad()
def encode_texts(
    model: nn.Module, tokenizer: Tokenizer, texts: Sequence[str], *, batch_size: int = 256
) -> Tensor:
    """L2-normalised text features [n, D], float32 on the model's device; the model in eval mode.

    Errors: InputError if there are no texts.
    """
    if isinstance(texts, str) or len(texts) == 0:
        raise InputError(f"texts: got {texts!r}, expected a list of at least one string")
    _check_batch_size(batch_size)
    clip: Any = model
    device = next(model.parameters()).device
    parts = []
    with evaluating(model):
        for start in range(0, len(texts), batch_size):
            tokens = tokenizer(list(texts[start : start + batch_size])).to(device)
            parts.append(F.normalize(clip.encode_text(tokens).float(), dim=-1))
    return torch.cat(parts)


@torch.no_grad()
def zero_shot_weights(
    model: nn.Module,
    tokenizer: Tokenizer,
    classnames: Sequence[str],
    templates: str | os.PathLike[str] | Sequence[Template],
    *,
    batch_size: int = 256,
) -> Tensor:
    """W_c = n(mean_t n(g(t(c)))), n the L2 normalisation: [C, D] float32, rows of unit length.

    `templates` as for `templates()`. At most `batch_size` texts are encoded at once.
    """
    if isinstance(classnames, str) or len(classnames) == 0:
        raise InputError(f"classnames: got {classnames!r}, expected a list of at least one name")
    _check_batch_size(batch_size)
    formats = resolve_templates(templates)
    step = max(1, batch_size // len(formats))
    rows = []
    for start in range(0, len(classnames), step):
        names = classnames[start : start + step]
        texts = [template.format(name) for name in names for template in formats]
        features = encode_texts(model, tokenizer, texts, batch_size=batch_size)
        rows.append(features.unflatten(0, (len(names), len(formats))).mean(dim=1))
    return F.normalize(torch.cat(rows), dim=-1)


def templates(name: str | os.PathLike[str] | Sequence[Template]) -> list[str]:
    """Templates as format strings, each with one "{}" for the class name.

    `name` is "openai" (open_clip's 80 for ImageNet), "simple" (its 7), "photo" (one: "a photo of a
    {}."), the path of a text file with one template a line, or the templates themselves, strings
    or functions of the class name.

    Errors: InputError if a template has no "{}", or the name is neither known nor a file.
    """
    if isinstance(name, (str, os.PathLike)):
        return _named_templates(name)
    if len(name) == 0:
        raise InputError("templates: got none, expected at least one")
    # Strings, unlike open_clip's lambdas, can be sent to worker processes and written down.
    formats = [template if isinstance(template, str) else template("{}") for template in name]
    for template in formats:
        try:
            filled = template.format("\0")
        except (IndexError, KeyError, ValueError):
            filled = ""
        if filled.count("\0") != 1:
            raise InputError(f"templates: got {template!r}, expected text with one {{}} in it")
    return formats


resolve_templates = templates  # for functions whose argument is called `templates`


def _named_templates(name: str | os.PathLike[str]) -> list[str]:
    if name == "photo":
        return ["a photo of a {}."]
    if name in ("openai", "simple"):
        open_clip = require("open_clip", extra="openclip")
        return templates(getattr(open_clip, f"{str(name).upper()}_IMAGENET_TEMPLATES"))
    path = Path(name)
    if not path.is_file():
        raise InputError(
            f"templates: {str(name)!r} is neither a file nor one of {', '.join(TEMPLATE_NAMES)}"
        )
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    try:
        return templates([line for line in lines if line])
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _check_batch_size(batch_size: int) -> None:
    if not isinstance(batch_size, int):
        raise InputTypeError(f"batch_size: got {batch_size!r}, expected an integer")
    if batch_size < 1:
        raise InputError(f"batch_size: got {batch_size}, expected at least 1")
