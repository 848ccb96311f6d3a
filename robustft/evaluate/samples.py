"""What a model said about each image, kept beside the result lines: one file a line.

    results.jsonl    {…, "method": "ft", "samples": "samples/ft-0-Digits-….safetensors"}
    samples/ft-0-Digits-….safetensors
        label        int16 [N], or int32 from 32,768 classes on
        predicted    the same; -1 where nothing is
        confidence   float32 [N]: the probability of what is predicted
        index        int32 [N]: rows of the data set; left out where it is 0 … N - 1
      of a VRF also
        distance, weight             float32 [N]; weight is the fine-tuned model's
        finetuned.*, zeroshot.*      predicted and confidence of both models
        thumbnails, ends, rows       of its nearest and farthest images, where files have none
    samples/set-Digits-….safetensors    class names and images, shared by all models

8 bytes an image, 28 of a VRF: 8 and 28 MB of a million. Files are safetensors with a checksum,
written under a temporary name and moved. Evaluating again replaces them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustft.accuracy import Predictions
from robustft.errors import InputError
from robustft.evaluate.sample_images import SetFile, pack, read_checked, slug, unpack
from robustft.models.tensor_files import write_tensors

FOLDER, FIELD = "samples", "samples"
EXTREMES = 8
"""Of a VRF so many nearest and so many farthest images have thumbnails."""
_KEY = "robustft.samples"
_WHO = ("dataset", "role", "split", "path", "method", "base", "seed", "alpha")
_NAME = re.compile(rf"{FOLDER}/[A-Za-z0-9][A-Za-z0-9.-]*\.safetensors")


class Weighing(NamedTuple):
    """How an ensemble of two models weighed each sample: the distance and the fine-tuned model's
    weight, float32 [N], and what either model says."""

    distance: Tensor
    weight: Tensor
    finetuned: Predictions
    zeroshot: Predictions


@dataclass(frozen=True, eq=False)
class Measured:
    """The samples of a result line that is still to be written. index: None for all rows."""

    labels: Tensor
    said: Predictions
    index: Tensor | None
    images: SetFile
    weighing: Weighing | None


@dataclass(frozen=True)
class Samples:
    """What one model said about N images, as it was read. who: what the line says of set and model;
    labels, index: int64 [N]; images: the name of the set's file (robustft.evaluate.sample_images);
    thumbnails: encoded pictures by row, which that file lacks."""

    who: dict[str, Any]
    labels: Tensor
    said: Predictions
    index: Tensor
    images: str
    weighing: Weighing | None = None
    thumbnails: Mapping[int, bytes] = field(default_factory=dict)

    @property
    def right(self) -> Tensor:
        """Which images have their label predicted: bool [N]."""
        return self.said.correct(self.labels)


class Name(str):
    """The name of a samples file as its line has it, and the folder of the results file."""

    folder: Path

    @classmethod
    def within(cls, text: str, folder: Path) -> Name:
        name = cls(text)
        name.folder = folder
        return name


def check_name(value: Any) -> None:
    """InputError for a field that names no file of the folder samples; `Measured` will do so."""
    if isinstance(value, Measured) or value is None:
        return
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise InputError(f"{FIELD}: got {value!r}, expected {FOLDER}/NAME.safetensors")


def located(record: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A line that was read from a file in `folder`, whose samples can be found."""
    if isinstance(name := record.get(FIELD), str):
        return {**record, FIELD: Name.within(name, folder)}
    return record


def keep(record: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write what a line was measured on into `folder`/samples; the line with its name."""
    measured = record.get(FIELD)
    if not isinstance(measured, Measured):
        return record
    who = {key: record.get(key) for key in _WHO}
    where = folder / FOLDER
    facts = {"format": 1, "who": who, "images": measured.images.write(where)}
    name = _file_name(who)
    write_tensors(where / name, _columns(measured), _KEY, facts)
    return {**record, FIELD: Name.within(f"{FOLDER}/{name}", folder)}


def samples_of(record: Mapping[str, Any]) -> Samples | None:
    """The samples of a line that `read_results` gave; None for one without.

    Errors: OSError where the file is gone; InputError, naming it, where it is damaged or belongs
    to another line: other numbers of images, or another accuracy than the line's.
    """
    name = record.get(FIELD)
    if not isinstance(name, Name):
        return None
    path = name.folder / name
    found = read_samples(path)
    own = {key: record.get(key) for key in ("method", "base", "seed", "split")}
    said = {key: found.who.get(key) for key in own}
    n, top1 = len(found.labels), float(found.right.double().mean())
    stated = record.get(f"{record['dataset']}:top1")
    if own != said or n != record["n"] or stated is None or abs(top1 - stated) > 1e-9:
        raise InputError(
            f"{path}: got samples of another evaluation ({n} images, {100 * top1:.2f} % right), "
            f"expected those of the line of {record['method']} on {record['dataset']}"
        )
    return found


def read_samples(path: Path) -> Samples:
    """Read a samples file. Errors: OSError; InputError, naming it, for one that is not whole."""
    tensors, facts = read_checked(path, _KEY)
    try:
        who, images = facts["who"], facts["images"]
        check_name(f"{FOLDER}/{images}")
        if not isinstance(who, dict):
            raise ValueError("no line that it belongs to")
        rows = len(tensors["label"])
        labels = _whole(tensors, "label", rows)
        index = _whole(tensors, "index", rows) if "index" in tensors else torch.arange(rows)
        if not rows or int(index[0]) < 0 or not bool((index.diff() > 0).all()):
            raise ValueError("rows that do not ascend")
        weighing = None
        if "distance" in tensors:
            weighing = Weighing(
                _real(tensors, "distance", rows),
                _real(tensors, "weight", rows),
                _said(tensors, "finetuned.", rows),
                _said(tensors, "zeroshot.", rows),
            )
        pictures = unpack(tensors, int(index[-1]) + 1)
        said = _said(tensors, "", rows)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: got a file that is no samples file ({error})") from error
    return Samples(who, labels, said, index, images, weighing, pictures)


def _columns(measured: Measured) -> dict[str, Tensor]:
    classes = len(measured.images.dataset.classnames)
    small = torch.int16 if classes < 2**15 else torch.int32
    found = {"label": measured.labels.to(small)}
    models = {"": measured.said}
    if (weighing := measured.weighing) is not None:
        found |= {"distance": weighing.distance.float(), "weight": weighing.weight.float()}
        models |= {"finetuned.": weighing.finetuned, "zeroshot.": weighing.zeroshot}
        order = weighing.distance.argsort(stable=True)
        ends = torch.cat([order[:EXTREMES], order[-EXTREMES:]])
        rows = ends if measured.index is None else measured.index[ends]
        found |= pack(measured.images.thumbnails(rows.unique().tolist()))
    for prefix, said in models.items():
        found[f"{prefix}predicted"] = said.predicted.to(small)
        found[f"{prefix}confidence"] = said.confidence.float()
    if measured.index is not None:
        found["index"] = measured.index.int()
    return found


def _file_name(who: Mapping[str, Any]) -> str:
    """Of a line's own: all that tells it from others of its results file but α, which is chosen."""
    own = [who[key] for key in _WHO if key != "alpha"]
    digest = hashlib.sha256(json.dumps(own).encode()).hexdigest()[:12]
    model = "+".join(filter(None, (who["base"], who["method"])))
    return f"{slug(model)}-{who['seed']}-{slug(who['dataset'])}-{digest}.safetensors"


def _said(tensors: Mapping[str, Tensor], prefix: str, rows: int) -> Predictions:
    return Predictions(
        _whole(tensors, f"{prefix}predicted", rows), _real(tensors, f"{prefix}confidence", rows)
    )


def _whole(tensors: Mapping[str, Tensor], name: str, rows: int) -> Tensor:
    column = tensors[name]
    if column.dtype not in (torch.int16, torch.int32) or column.shape != (rows,):
        raise ValueError(f"{name} of {column.dtype} {list(column.shape)}")
    return column.long()


def _real(tensors: Mapping[str, Tensor], name: str, rows: int) -> Tensor:
    column = tensors[name]
    if column.dtype != torch.float32 or column.shape != (rows,):
        raise ValueError(f"{name} of {column.dtype} {list(column.shape)}")
    return column
