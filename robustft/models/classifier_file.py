"""A classifier on disk: one safetensors file with the whole model and the head."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robustft.errors import InputError, InputTypeError
from robustft.models.adapter_set import adapters_of
from robustft.models.clip import Clip
from robustft.models.heads import Classifier
from robustft.models.tensor_files import read_description, read_tensors, write_tensors
from robustft.models.weights import check_same_tensors

FORMAT = 1
_KEY = "robustft.classifier"


def save_classifier(
    path: str | Path, classifier: Classifier, *, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write a classifier to one safetensors file: "clip.*", "head.weight", "head.bias".

    `metadata` (anything JSON can hold) goes into the file's header together with the class names
    and the format version.

    Errors: InputError if the model carries adapters (merge them first) or the path does not end in
    .safetensors.
    """
    target = Path(path)
    if target.suffix != ".safetensors":
        raise InputError(f"path: got {str(target)!r}, expected a name ending in .safetensors")
    if adapters_of(classifier.clip) is not None:
        raise InputError(
            "classifier: its model carries adapters, expected a plain model; load "
            "merged_state_dict into an unadapted copy first"
        )
    description = {"format": FORMAT, "classnames": classifier.classnames}
    try:
        description["metadata"] = json.loads(json.dumps(dict(metadata or {})))
    except (TypeError, ValueError) as error:
        raise InputTypeError(f"metadata: got what JSON cannot hold ({error})") from error
    write_tensors(target, classifier.state_dict(), _KEY, description)


def classifier_metadata(path: str | Path) -> dict[str, Any]:
    """The header of a saved classifier: "format", "classnames" and "metadata".

    Errors: InputError if the file is no classifier of a known format; OSError if it cannot be read.
    """
    description = read_description(Path(path), _KEY)
    if description is None:
        raise InputError(f"{path}: not a classifier saved by robustft")
    if description.get("format") != FORMAT:
        raise InputError(f"{path}: format {description.get('format')!r}, expected {FORMAT}")
    if not {"classnames", "metadata"} <= description.keys():
        raise InputError(f"{path} is damaged: its header is no description of a classifier")
    return description


def load_classifier(path: str | Path, clip: Clip) -> Classifier:
    """Read a saved classifier; `clip` gives the architecture and is left as it is.

    Errors: InputError, naming the first tensors that differ, if the file is of another model, or
    naming the file, if it has changed since it was written.
    """
    description = classifier_metadata(path)
    tensors = read_tensors(Path(path), _KEY)
    for name in ("head.weight", "head.bias"):
        if name not in tensors:
            raise InputError(f"{path}: {name} is missing")
    saved = {k.removeprefix("clip."): v for k, v in tensors.items() if k.startswith("clip.")}
    check_same_tensors(clip.model.state_dict(), saved, f"the model {clip.name}", str(path))
    model = copy.deepcopy(clip.model)
    model.load_state_dict(saved)
    classifier = Classifier(
        model, tensors["head.weight"], tensors["head.bias"], description["classnames"]
    )
    classifier.metadata = description["metadata"]
    return classifier.eval()
