"""Adapters on disk: adapters.safetensors (weights and shadow) and adapters.json (all else)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from torch import nn

from robustft.atomic import replacing_folder, write_json
from robustft.errors import InputError
from robustft.models.adapter import ALPHA, AdapterConfig, AdapterSet, attach, plain_state_dict
from robustft.models.sites import find_sites
from robustft.models.tensor_files import read_tensors, write_tensors
from robustft.scalars import real

WEIGHTS = "adapters.safetensors"
CONFIG = "adapters.json"
FORMAT = 1
_KEY = "robustft.adapters"


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of the names and shapes of the model's tensors, adapters aside."""
    lines = sorted(f"{k} {list(v.shape)}" for k, v in plain_state_dict(model).items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def save_adapters(adapters: AdapterSet, folder: str | Path) -> None:
    """Write adapters.safetensors and adapters.json; the folder appears, or is replaced, as a whole.

    Errors: InputError if the folder holds anything else, which replacing it would lose.
    """
    target = Path(folder)
    if target.exists():
        others = sorted(p.name for p in target.iterdir() if p.name not in (WEIGHTS, CONFIG))
        if others:
            raise InputError(
                f"folder: {target} holds {others[0]!r}, expected a folder for adapters"
            )
    description = {
        "format": FORMAT,
        "config": dataclasses.asdict(adapters.config),
        "alpha": adapters.alpha,
        "model": {
            "class": type(adapters.model).__name__,
            "fingerprint": fingerprint(adapters.model),
        },
        "widths": {site.name: site.width for site in adapters.sites},
    }
    with replacing_folder(target) as temporary:
        write_tensors(temporary / WEIGHTS, adapters.state_dict(), _KEY, {})
        write_json(temporary / CONFIG, description)


def load_adapters(folder: str | Path, model: nn.Module) -> AdapterSet:
    """Add the adapters saved in `folder`, with their strength, to the model they were made for.

    Errors: InputError, and the model is unchanged, if they were made for another model or the
    files are damaged; FileNotFoundError if they are not there.
    """
    source = Path(folder)
    description = _read_description(source / CONFIG)
    config = AdapterConfig(
        **{**description["config"], "towers": tuple(description["config"]["towers"])}
    )
    widths = {site.name: site.width for site in find_sites(model, config.towers)}
    _check_model(source, description, widths, model)
    tensors = read_tensors(source / WEIGHTS, _KEY)
    adapters = attach(model, config)
    try:
        adapters.alpha = real("alpha", description.get("alpha", ALPHA))  # older files have none
        adapters.load_state_dict(tensors)
    except InputError as error:
        adapters.remove()
        raise InputError(f"{source / WEIGHTS}: does not match {CONFIG}: {error}") from error
    return adapters


def _read_description(path: Path) -> dict[str, Any]:
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        version = description["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a description of adapters ({error!r})") from error
    if version != FORMAT:
        raise InputError(f"{path}: format {version!r}, expected {FORMAT}")
    fields = {field.name for field in dataclasses.fields(AdapterConfig)}
    keys = {"config", "model", "widths"}
    if not keys <= description.keys() or set(description["config"]) != fields:
        raise InputError(f"{path}: not a description of adapters, expected {sorted(keys)}")
    return description


def _check_model(
    source: Path, description: dict[str, Any], widths: dict[str, int], model: nn.Module
) -> None:
    saved = description["widths"]
    name = type(model).__name__
    for site in sorted(saved.keys() | widths.keys()):
        if saved.get(site) != widths.get(site):
            raise InputError(
                f"{source}: made for another model: at {site} the width is "
                f"{saved.get(site, 'none')} in the file, {widths.get(site, 'none')} in this {name}"
            )
    if description["model"]["fingerprint"] != fingerprint(model):
        raise InputError(
            f"{source}: made for another model: same blocks, but other tensors than this {name} "
            "has (their names and shapes differ)"
        )
