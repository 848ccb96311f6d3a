"""`robustft init`: a run.yaml for the data that are there, each setting under its own help."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import torch

from robustft.cli import materials, plan
from robustft.cli.ending import command, end
from robustft.cli.init_options import InitOptions
from robustft.cli.look import Found, look
from robustft.cli.options import offered
from robustft.cli.parser import help_of
from robustft.cli.stores import in_words
from robustft.cli.train_options import TrainOptions
from robustft.errors import InputError
from robustft.methods import METHODS
from robustft.models.clip import TINY_NAME, WITH_WEIGHTS
from robustft.optional import require
from robustft.readable import readable
from robustft.train import forewarn

_SHARE = 0.8  # of the memory that is free: estimates leave out what a step needs for a moment
_LEAST = 64  # images a step, below which full fine-tuning is not suggested
_STEPS = 4  # an epoch has at least so many


def init(options: InitOptions) -> None:
    """Write a run.yaml."""
    if options.out.exists() and not options.force:
        raise InputError(f"--out: got {options.out}, which is there already; expected --force too")
    needs = options.method is not None and METHODS[options.method].needs_reference
    if needs and options.reference is None:
        raise InputError(f"--reference: got nothing, expected reference pairs for {options.method}")
    found = look(options.data, options.data_location)
    values, why = _suggested(options, found)
    from robustft.atomic import write_text

    write_text(options.out, page(values, [*found.said, *why]))
    for line in (*found.said, *why):
        print(readable(line))
    train = command("train", "--config", options.out)
    end(options.out, next=[f"{train} --dry-run", train])


def page(values: dict[str, Any], said: list[str]) -> str:
    """The YAML text: `said` and every setting's help as comments, the settings that are not in
    `values` commented out at their defaults."""
    yaml = require("yaml", extra="train")
    defaults = materials.settled(TrainOptions(**{k: v for k, v in values.items() if k != "data"}))
    parts = ["\n".join(_comment(line) for line in (_HEAD, *said))]
    for field in sorted(offered(TrainOptions), key=lambda field: field.name not in values):
        value = values.get(field.name, getattr(defaults, field.name))
        plain = str(value) if isinstance(value, Path) else value
        line = yaml.safe_dump({field.name: plain}, allow_unicode=True, width=10**6).strip()
        off = "" if field.name in values else "# "
        parts.append(f"{_comment(help_of(field))}\n{off}{line}")
    return "\n\n".join(parts) + "\n"


_HEAD = (
    "Options of robustft train --config, written by robustft init. Paths are those of the folder "
    "it was called in. What is commented out stands at its default."
)


def _comment(text: str) -> str:
    return textwrap.fill(
        readable(text), 98, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
    )


def _suggested(options: InitOptions, found: Found) -> tuple[dict[str, Any], list[str]]:
    """The settings of the run, and why they are what they are."""
    device = materials.choose_device(options.device)
    card = device.startswith("cuda")
    values: dict[str, Any] = {
        "model": options.model,
        "pretrained": options.pretrained or _weights(options.model),
        "precision": "bf16" if card and torch.cuda.is_bf16_supported() else "fp32",
    } | found.settings
    given = {"data_module": options.data_module, "reference": options.reference}
    values |= {key: value for key, value in given.items() if value is not None}
    room = forewarn.free_memory(torch.device(device))
    for method in [options.method] if options.method else ["flyp", "r-adapter"]:
        values["method"] = method
        rows, size = _rows(values, room)
        if rows >= _LEAST:
            break
    published = METHODS[values["method"]].published
    most = min(max(rows, 1), published.batch_size, max(len(found.train) // _STEPS, 2))
    values |= {"batch_size": 2 ** (most.bit_length() - 1), "epochs": max(published.epochs, 1)}
    return values, [f"{values['method']}: {size}; {in_words(room)} are free on the {device}"]


def _rows(values: dict[str, Any], room: int) -> tuple[int, str]:
    """How many images a step fit into memory, and what was reckoned."""
    options = TrainOptions(**{k: v for k, v in values.items() if k != "data"}, batch_size=1)
    try:
        size = plan.estimate(materials.settled(options), materials.method_of(options))
    except InputError as error:
        return _LEAST, f"memory not estimated ({error})"
    each = max(size.activations, 1)
    text = f"{in_words(size.state)} of weights and optimiser state, {in_words(each)} an image"
    return max(int((_SHARE * room - size.state) // each), 0), f"estimated {text}"


def _weights(model: str) -> str | None:
    """Weights for a model that are named nowhere."""
    if model == TINY_NAME:
        return "glyphs"
    if model.startswith(WITH_WEIGHTS):
        return None
    open_clip = require("open_clip", extra="openclip")
    tags = open_clip.list_pretrained_tags_by_model(model)
    return "openai" if "openai" in tags or not tags else str(tags[0])
