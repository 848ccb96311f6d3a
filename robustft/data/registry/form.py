"""The form in which a data set is registered: where it lies, who reads it, how much it should hold.

As YAML, any number of sets in a file:

    my-birds:
      title: My birds                 # its name in tables; default: the name
      reader: class-folders           # robustft.data.registry.readers lists them
      templates: ["a photo of a {}."] # or openai; default: the reader's, else those of the model
      metrics: [macro-f1]             # beside top-1: macro-f1, worst-group, each-group
      download: https://...           # said where nothing is found
      train: {at: [birds/train, birds-v2/train], images: 1000, classes: 20}
      test: {at: [birds/test], images: 200, classes: 20}

What has captions in place of classes (readers karpathy and captions) states their number likewise,
`captions: 25010`. A split is the first place of `at`, below the root, that exists; {place: P,
images: N} is one that holds another number of images (or unknown: N left out). A count that is not
certain is marked `sure: false`. What else stands beside a set or a split goes to its reader.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robustft.data.text_files import read_yaml
from robustft.errors import InputError

SPLITS = ("train", "val", "test")
METRICS = ("macro-f1", "worst-group", "each-group")
_SET_KEYS = {"title", "reader", "templates", "metrics", "download", *SPLITS}
_COUNTS = ("images", "classes", "captions")
_SPLIT_KEYS = {"at", "sure", *_COUNTS}


@dataclass(frozen=True)
class Part:
    """One split: the places to look at, what it should hold (None: any number), and what its reader
    is told. captions: those listed of all images; sure: False for counts that only warn; images_at:
    where a place holds another number than `images`."""

    at: tuple[str, ...]
    images: int | None = None
    classes: int | None = None
    captions: int | None = None
    sure: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    images_at: Mapping[str, int | None] = field(default_factory=dict)


@dataclass(frozen=True)
class DataSet:
    """A registered data set. reader: a name of `readers.READERS`, or a function like those there;
    parts: by split; templates: a list, or "openai"; options: for the reader."""

    name: str
    reader: str | Callable[..., Any]
    parts: Mapping[str, Part]
    title: str = ""
    templates: str | list[str] | None = None
    metrics: tuple[str, ...] = ()
    download: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def display(self) -> str:
        return self.title or self.name


def read_sets(path: Path) -> list[DataSet]:
    """The sets of a YAML file. Errors: InputError naming the file, the set and the key."""
    found = read_yaml(path)
    if not isinstance(found, dict) or not found:
        raise InputError(f"{path}: got {type(found).__name__}, expected names of sets with values")
    return [_set(f"{path}: {name}", str(name), values) for name, values in found.items()]


def _set(where: str, name: str, values: Any) -> DataSet:
    if not isinstance(values, dict) or not isinstance(values.get("reader"), str):
        raise InputError(f"{where}: got {values!r}, expected a mapping with a reader")
    parts = {split: _part(f"{where}.{split}", values[split]) for split in SPLITS if split in values}
    if not parts:
        raise InputError(f"{where}: got no split, expected one of {', '.join(SPLITS)}")
    metrics = values.get("metrics", [])
    if not isinstance(metrics, list) or not set(metrics) <= set(METRICS):
        raise InputError(f"{where}.metrics: got {metrics!r}, expected of {', '.join(METRICS)}")
    templates = values.get("templates")
    if templates is not None and not isinstance(templates, str | list):
        raise InputError(f"{where}.templates: got {templates!r}, expected a name or a list")
    return DataSet(
        name=name,
        reader=values["reader"],
        parts=parts,
        title=str(values.get("title", name)),
        templates=templates,
        metrics=tuple(metrics),
        download=values.get("download"),
        options={key: value for key, value in values.items() if key not in _SET_KEYS},
    )


def _part(where: str, values: Any) -> Part:
    if not isinstance(values, dict):
        raise InputError(f"{where}: got {values!r}, expected a mapping with at: [places]")
    at = values.get("at")
    listed = at if isinstance(at, list) else [at]
    apart = [one for one in listed if isinstance(one, dict)]
    places: list[Any] = [one.get("place") if isinstance(one, dict) else one for one in listed]
    if not places or not all(isinstance(place, str) for place in places):
        raise InputError(f"{where}.at: got {at!r}, expected a list of places below the root")
    for holder in (values, *apart):
        for key in _COUNTS:
            count = holder.get(key)
            if count is not None and (isinstance(count, bool) or not isinstance(count, int)):
                raise InputError(f"{where}.{key}: got {count!r}, expected a whole number")
    if not isinstance(values.get("sure", True), bool):
        raise InputError(f"{where}.sure: got {values['sure']!r}, expected true or false")
    return Part(
        at=tuple(places),
        images=values.get("images"),
        classes=values.get("classes"),
        captions=values.get("captions"),
        sure=values.get("sure", True),
        options={key: value for key, value in values.items() if key not in _SPLIT_KEYS},
        images_at={one["place"]: one.get("images") for one in apart},
    )
