"""What a checkpoint and the run that resumes from it must have in common."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from torch import nn

from robustft.data.templates import describe_templates
from robustft.models import Clip, tensor_files
from robustft.train.config import TrainConfig


def fingerprint(
    method: dict[str, Any],
    clip: Clip,
    train: Any,
    reference: Any | None,
    templates: list[Any],
    config: TrainConfig,
    *,
    val: Any | None = None,
    processes: int,
    weights: bool,
) -> dict[str, Any]:
    """Method, model, data and settings of a run as JSON; `weights` adds a hash of the model's.

    val: the validation set, where the method learns from it.
    """
    model = {"name": clip.name, "pretrained": clip.pretrained}
    if weights:
        model["weights"] = digest(clip.model)
    return {
        "method": method,
        "model": model,
        "train": identity(train),
        "templates": digest_texts(describe_templates(templates, train.classnames)),
        "reference": None if reference is None else pairs_identity(reference),
        "config": config.identity(),
        "processes": processes,
    } | ({} if val is None else {"val": identity(val)})


def identity(data: Any) -> dict[str, Any]:
    """What tells a labelled data set from a changed one: classes, and labels in order; of pairs the
    captions, too."""
    captions = {} if data.classnames else {"captions": digest_texts(data.captions or ())}
    return {
        "name": data.name,
        "split": data.split,
        "n": len(data),
        "classes": digest_texts(data.classnames),
        "labels": digest_texts(data.labels.tolist()),
    } | captions


def pairs_identity(reference: Any) -> dict[str, Any]:
    """The same of reference pairs: their captions in order."""
    captions = digest_texts(reference.captions)
    return {"name": reference.name, "n": len(reference), "captions": captions}


def differences(theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """The settings in which two fingerprints differ, each with both values.

    Runs on different numbers of processes are compared by what all processes together do.
    """
    there, here = flat(theirs), flat(json.loads(json.dumps(ours)))
    if other_processes(theirs, ours):
        there, here = _together(there), _together(here)
    return [
        f"{key}: {there.get(key)!r} there, {here.get(key)!r} here"
        for key in sorted(there | here)
        if there.get(key) != here.get(key)
    ]


def other_processes(theirs: dict[str, Any], ours: dict[str, Any]) -> bool:
    """Whether two fingerprints are of different numbers of processes."""
    return bool(theirs.get("processes") != ours.get("processes"))


def _together(settings: dict[str, Any]) -> dict[str, Any]:
    """Without the number of processes; sizes of batches are those of all processes."""
    settings, found = dict(settings), {}
    processes = settings.pop("processes", None)
    for key in ("config.batch_size", "method.reference_batch_size"):
        if isinstance(settings.get(key), int) and isinstance(processes, int):
            found[f"{key} × processes"] = settings.pop(key) * processes
    return settings | found


def digest(module: nn.Module) -> str:
    """A short SHA-256 of all parameters and buffers: tells two sets of weights apart."""
    return tensor_files.digest(module.state_dict())[:16]


def digest_texts(texts: Iterable[Any]) -> str:
    """A short SHA-256 of a list of strings or numbers: of its JSON, which is never held whole."""
    total = hashlib.sha256(b"[")
    for number, text in enumerate(texts):
        total.update((", " * (number > 0) + json.dumps(str(text))).encode())
    total.update(b"]")
    return total.hexdigest()[:16]


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level: "config.lr"."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found
