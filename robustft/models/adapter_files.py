"""Adapters on disk, in a folder of their own.

adapters.safetensors holds weights and shadow, adapters.json all else. In PEFT's form the same two
are adapter_model.safetensors, whose names begin with "base_model.model.", and adapter_config.json,
which has PEFT's general keys too (no PEFT release knows the method, so its own loader does not take
them). Adapters of R-Adapter's release are turned into these.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robustft.atomic import replacing_folder, write_json, write_text
from robustft.errors import InputError
from robustft.models.adapter import ALPHA, AdapterConfig
from robustft.models.adapter_set import AdapterSet, attach, merged_state_dict, plain_state_dict
from robustft.models.checkpoints import Checkpoint
from robustft.models.sites import TOWERS, find_sites
from robustft.models.tensor_files import read_tensors, write_tensors
from robustft.scalars import real

WEIGHTS = "adapters.safetensors"
CONFIG = "adapters.json"
PEFT_WEIGHTS = "adapter_model.safetensors"
PEFT_CONFIG = "adapter_config.json"
README = "README.md"
FORMAT = 1
_KEY = "robustft.adapters"
_PEFT_PREFIX, _PEFT_CHILD = "base_model.model.", ".r_adapter."


class Base(NamedTuple):
    """The model that adapters were made for: open_clip's name, and where its weights came from."""

    name: str
    pretrained: str | None


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of the names and shapes of the model's tensors, adapters aside."""
    lines = sorted(f"{k} {list(v.shape)}" for k, v in plain_state_dict(model).items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def save_adapters(
    adapters: AdapterSet,
    folder: str | Path,
    *,
    base: Base | None = None,
    peft: bool = False,
    card: str | None = None,
) -> None:
    """Write both files; the folder appears, or is replaced, as a whole.

    base: the model they were made for, so that the folder alone is enough for `load_clip`; peft:
    in PEFT's form; card: the text of a README.md beside them.

    Errors: InputError if the folder holds anything else, which replacing it would lose.
    """
    target = Path(folder)
    if target.exists():
        own = (WEIGHTS, CONFIG, PEFT_WEIGHTS, PEFT_CONFIG, README)
        others = sorted(p.name for p in target.iterdir() if p.name not in own)
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
    if base is not None:
        description["base"] = base._asdict()
    with replacing_folder(target) as temporary:
        if card is not None:
            write_text(temporary / README, card)
        if not peft:
            write_tensors(temporary / WEIGHTS, adapters.state_dict(), _KEY, {})
            write_json(temporary / CONFIG, description)
            return
        tensors = {_to_peft(name): t for name, t in adapters.state_dict().items()}
        write_tensors(temporary / PEFT_WEIGHTS, tensors, _KEY, {})
        write_json(temporary / PEFT_CONFIG, _peft_config(adapters, base, description))


def load_adapters(folder: str | Path, model: nn.Module) -> AdapterSet:
    """Add the adapters saved in `folder`, with their strength, to the model they were made for.

    Errors: InputError, and the model is unchanged, if they were made for another model or the
    files are damaged; FileNotFoundError if they are not there.
    """
    source = Path(folder)
    peft = (source / PEFT_CONFIG).is_file()
    file, described = source / (PEFT_WEIGHTS if peft else WEIGHTS), PEFT_CONFIG if peft else CONFIG
    description = _read_description(source)
    config = AdapterConfig(
        **{**description["config"], "towers": tuple(description["config"]["towers"])}
    )
    widths = {site.name: site.width for site in find_sites(model, config.towers)}
    _check_model(source, description, widths, model)
    tensors = read_tensors(file, _KEY)
    adapters = attach(model, config)
    try:
        adapters.alpha = real("alpha", description.get("alpha", ALPHA))  # older files have none
        adapters.load_state_dict(
            {_from_peft(k): t for k, t in tensors.items()} if peft else tensors
        )
    except InputError as error:
        adapters.remove()
        raise InputError(f"{file}: does not match {described}: {error}") from error
    return adapters


def base_of(folder: str | Path) -> Base | None:
    """The model that the adapters of a folder were made for; None for what is no such folder.

    Errors: InputError where the folder does not say it.
    """
    source = Path(folder)
    if not any((source / name).is_file() for name in (CONFIG, PEFT_CONFIG)):
        return None
    base = _read_description(source).get("base")
    if not (isinstance(base, dict) and isinstance(base.get("name"), str)):
        raise InputError(
            f"pretrained: {source} does not say which model its adapters were made for, expected "
            '"base" in its description (robustft export --format adapters writes it)'
        )
    return Base(base["name"], base.get("pretrained"))


def check_base(base: Base, name: str) -> None:
    """InputError where adapters were made for another model than `name`."""
    if base.name != name:
        raise InputError(f"its adapters were made for {base.name}, expected that model's name")


def attach_release(
    model: nn.Module, found: Mapping[tuple[str, str], Mapping[str, Tensor]]
) -> AdapterSet:
    """Add the adapters of R-Adapter's release to a model, as `read_checkpoint` found them.

    A pair of factors as wide as the model or wider, which the release trains by mistake, becomes
    one full matrix. Where no average was kept the live weights stand for it.

    Errors: InputError if a tensor is missing, or the model has no such places.
    """
    ranks: dict[str, int | None] = {}
    state: dict[str, Tensor] = {}
    for (block, place), tensors in found.items():
        tower = "image" if block.startswith("visual.") else "text"
        averaged = any(key.startswith("ema:") for key in tensors)
        for kind, shadow in (("", ""), ("ema:" if averaged else "", "ema_")):
            try:
                scale = tensors[f"{kind}s"].reshape(())
                if f"{kind}f.weight" in tensors:
                    factors = {"weight": tensors[f"{kind}f.weight"]}
                else:
                    down, up = tensors[f"{kind}d.weight"], tensors[f"{kind}u.weight"]
                    narrow = len(down) < len(up)
                    factors = {"down": down, "up": up} if narrow else {"weight": up @ down}
            except KeyError as error:
                raise InputError(f"adapters: {error} of {block}.{place} is missing") from error
            ranks[tower] = len(factors["down"]) if "down" in factors else None
            for key, tensor in {**factors, "scale": scale}.items():
                state[f"{block}.{place}.{shadow}{key}"] = tensor
    config = AdapterConfig(
        image_rank=ranks.get("image"),
        text_rank=ranks.get("text"),
        drop_mode="token",
        towers=tuple(tower for tower in TOWERS if tower in ranks),
    )
    adapters = attach(model, config)
    try:
        adapters.load_state_dict(state)
    except InputError:
        adapters.remove()
        raise
    return adapters


@torch.no_grad()
def fold(model: nn.Module, source: str | Path | Checkpoint, alpha: float | None) -> None:
    """Fold adapters, from a folder or from a release's checkpoint, into a model's weights.

    alpha: their strength; None for the one saved with them, or 0.5.
    """
    if isinstance(source, Checkpoint):
        adapters = attach_release(model, source.adapters)
    else:
        adapters = load_adapters(source, model)
    merged = merged_state_dict(model, adapters, alpha)
    adapters.remove()
    model.load_state_dict(merged)


def _to_peft(name: str) -> str:
    site, _, key = name.rpartition(".")
    return f"{_PEFT_PREFIX}{site}{_PEFT_CHILD}{key}"


def _from_peft(name: str) -> str:
    return name.removeprefix(_PEFT_PREFIX).replace(_PEFT_CHILD, ".")


def _peft_config(
    adapters: AdapterSet, base: Base | None, description: dict[str, Any]
) -> dict[str, Any]:
    return {
        "peft_type": "R_ADAPTER",
        "task_type": "FEATURE_EXTRACTION",
        "base_model_name_or_path": None if base is None else base.name,
        "inference_mode": True,
        "r": {tower: adapters.config.rank_of(tower) for tower in adapters.config.towers},
        "target_modules": [site.linear for site in adapters.sites],
        "robustft": description,
    }


def _read_description(source: Path) -> dict[str, Any]:
    """What describes the adapters of a folder, in either form."""
    peft = (source / PEFT_CONFIG).is_file()
    path = source / (PEFT_CONFIG if peft else CONFIG)
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        description = description["robustft"] if peft else description
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
