"""Finding a registered set below a root, reading it, and comparing it with what it should hold."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robustft.data.captioned import CaptionedDataset
from robustft.data.classes import LabelSpace
from robustft.data.datasets import ImageDataset, PairDataset
from robustft.data.folders import carve_validation
from robustft.data.images import DAMAGED_SHARE, FileImages
from robustft.data.regions import RegionDataset
from robustft.data.registry.form import SPLITS, DataSet, Part
from robustft.data.registry.known import REGISTRY
from robustft.data.registry.readers import READERS
from robustft.data.registry.request import Request
from robustft.data.registry.spec import Spec
from robustft.data.templates import Template, fill, read_templates
from robustft.errors import InputError, warn
from robustft.optional import require

_CAPTIONS = 11  # first word of the seed that draws captions' templates
AnyDataset = ImageDataset | PairDataset


def load(spec: Spec, split: str, *, seed: int = 0, val_fraction: float = 0.1) -> ImageDataset:
    """One split of a registered set of labelled or captioned images.

    A missing val is carved from train by `seed`, as of an image folder. Errors: InputError where
    the set has no such split or is not there, holds other classes than it should, or less than
    99 % of its images (unless `spec.partial`), or is one of pairs.
    """
    entry = REGISTRY[spec.name]
    if split not in SPLITS:
        raise InputError(f"split: got {split!r}, expected one of {', '.join(SPLITS)}")
    carve = split != "test" and ("val" not in entry.parts or find(spec, "val") is None)
    dataset = load_part(spec, "train" if carve else split)
    if not isinstance(dataset, ImageDataset):
        raise InputError(
            f"{spec}: got image-caption pairs, expected labelled images, or images with captions "
            "(pairs are for --reference)"
        )
    if carve:
        dataset = carve_validation(dataset, split, seed, val_fraction)
    return dataset if spec.half is None else half_of_classes(dataset, spec.half)


def load_pairs(spec: Spec, *, n: int | None = None, seed: int = 0) -> PairDataset:
    """The training split of a registered set as reference pairs: all, or `n` drawn by `seed`.

    A set of labelled images has captions of its class names in its templates, one drawn an image.
    Errors: InputError as for `load`.
    """
    dataset = load_part(spec, "train")
    if isinstance(dataset, CaptionedDataset):
        pairs = dataset.pairs()
        dataset = PairDataset(pairs.images, dataset.texts, name=dataset.name)
    elif isinstance(dataset, ImageDataset):
        half = dataset if spec.half is None else half_of_classes(dataset, spec.half)
        dataset = captioned(half, seed)
    available = len(dataset)
    if n is None or n >= available:
        return dataset
    rng = np.random.default_rng(np.random.SeedSequence([seed]))
    rows = np.sort(rng.choice(available, n, replace=False)).tolist()
    drawn: PairDataset = dataset.subset(rows)
    drawn.available = available
    return drawn


def captioned(dataset: ImageDataset, seed: int) -> PairDataset:
    """Labelled images as pairs: each with its class name in a template drawn by (seed, index)."""
    templates = dataset.templates or ["a photo of a {}."]
    rng = np.random.default_rng(np.random.SeedSequence([_CAPTIONS, seed]))
    drawn = rng.integers(0, len(templates), len(dataset)).tolist()
    names = [dataset.classnames[label] for label in dataset.labels.tolist()]
    texts = [fill(templates[t], name) for t, name in zip(drawn, names, strict=True)]
    return PairDataset(dataset.images, texts, name=dataset.name)


def load_part(spec: Spec, split: str) -> Any:
    """A split as it lies on disk, checked and with the set's own templates and metrics."""
    entry = REGISTRY[spec.name]
    place = find(spec, split)
    if place is None:
        raise InputError(not_found(spec, split))
    dataset = read(entry, spec, split, place)
    problem = wrong_counts(expected(spec, split, place), dataset)
    if problem is not None:
        text = f"{spec.name} {split} in {place}: {problem.text}"
        if problem.fatal and not spec.partial:
            raise InputError(f"{text}; {problem.guess} (partial:{spec.name} takes it as it is)")
        warn(text)
    return dataset


def read(entry: DataSet, spec: Spec, split: str, place: Path) -> AnyDataset:
    """A split in `place`, whatever it holds. Errors: InputError as its reader raises it."""
    part = entry.parts[split]
    reader = READERS.get(entry.reader) if isinstance(entry.reader, str) else entry.reader
    if reader is None:
        raise InputError(
            f"data set {entry.name!r}: got the reader {entry.reader!r}, expected one of "
            f"{', '.join(READERS)}"
        )
    options = {**entry.options, **part.options}
    root = Path(str(spec.root))
    request = Request(str(spec), entry.display, split, root, place, options, spec.partial)
    dataset: AnyDataset = reader(request)
    if not len(dataset):
        raise InputError(f"{spec}: got no image in {place}, expected {part.images or 'some'}")
    if isinstance(dataset, ImageDataset):
        dataset.templates = own_templates(entry) or dataset.templates
        dataset.metrics = entry.metrics or dataset.metrics
    return dataset


def find(spec: Spec, split: str) -> Path | None:
    """The first place of a split that exists, or None. Errors: InputError for a set without that
    split, or a name without a root."""
    entry = REGISTRY[spec.name]
    if split not in entry.parts:
        raise InputError(f"{spec.name} has no {split!r} split, expected {' or '.join(entry.parts)}")
    if spec.root is None:
        raise InputError(
            f"{spec.name}: got no root folder, expected {spec.name}@ROOT, or --data or --suite "
            "with --data-location ROOT"
        )
    places = (Path(spec.root) / place for place in entry.parts[split].at)
    return next((place for place in places if place.exists()), None)


def not_found(spec: Spec, split: str) -> str:
    """What is said of a split that is not there: where it was looked for, and where it is had."""
    entry = REGISTRY[spec.name]
    text = f"{spec.name} {split}: not found below {spec.root}, looked for " + ", ".join(
        entry.parts[split].at
    )
    return text + (f" (download: {entry.download})" if entry.download else "")


def expected(spec: Spec, split: str, place: Path) -> Part:
    """The split's part with the counts of that place."""
    part = REGISTRY[spec.name].parts[split]
    for where, images in part.images_at.items():
        if Path(str(spec.root)) / where == place:
            return replace(part, images=images)
    return part


@dataclass(frozen=True)
class Problem:
    """What is wrong with counts; fatal: beyond what may be missing, and certain; guess: why."""

    text: str
    fatal: bool
    guess: str


def wrong_counts(part: Part, dataset: AnyDataset) -> Problem | None:
    """How a split differs from what it should hold, if it does: fatal if classes are missing, or
    images beyond the share that may be damaged."""
    images, classes, captions = counts(dataset)
    wrong = []
    fatal = False
    if part.images is not None and images != part.images:
        wrong.append(f"{images:,} images, expected {part.images:,}")
        fatal |= images > part.images or images < (1 - DAMAGED_SHARE) * part.images
    if part.classes is not None and classes is not None and classes != part.classes:
        wrong.append(f"{classes:,} classes, expected {part.classes:,}")
        fatal = True
    if part.captions is not None and captions is not None and captions != part.captions:
        wrong.append(f"{captions:,} captions, expected {part.captions:,}")
    if not wrong:
        return None
    unsure = "" if part.sure else " (from memory)"
    more = part.images is not None and images > part.images
    guess = "is something else in there?" if more else "is an archive half unpacked?"
    return Problem("got " + " and ".join(wrong) + unsure, fatal and part.sure, guess)


def counts(dataset: AnyDataset) -> tuple[int, int | None, int | None]:
    """Images, classes that have some (None where there are none), and captions that are listed
    (None of labelled images). Of regions the images that they are of, and the classes that are
    named."""
    if isinstance(dataset, CaptionedDataset):
        return len(dataset), None, dataset.listed
    if not isinstance(dataset, ImageDataset):
        if isinstance(dataset.images, FileImages):  # an image may have several captions
            return len(set(dataset.images.paths)), None, len(dataset)
        return len(dataset), None, len(dataset)
    if isinstance(dataset, RegionDataset):
        called = dataset.classnames if dataset.class_subset is None else dataset.class_subset
        return len(dataset.scenes), len(called), None
    return len(dataset), len(dataset.labels.unique()), None


def own_templates(entry: DataSet) -> list[Template] | None:
    """The prompts that a set is registered with: a list, or open_clip's 80 as "openai"."""
    if entry.templates == "openai":
        return list(require("open_clip", extra="openclip").OPENAI_IMAGENET_TEMPLATES)
    return read_templates(entry.templates)


def half_of_classes(dataset: ImageDataset, half: str) -> ImageDataset:
    """The images of the first half of the classes in label order, rounded up ("base"), or of the
    others ("novel"), with labels from 0 on: base-to-novel generalisation (CoOp)."""
    if not dataset.classnames:
        raise InputError(f"{half}:{dataset.name}: got images with captions, expected classes")
    if dataset.merged is not None or dataset.class_subset is not None:
        raise InputError(f"{half}:{dataset.name}: expected a set in which each class occurs")
    first = math.ceil(len(dataset.classnames) / 2)
    start, end = (0, first) if half == "base" else (first, len(dataset.classnames))
    inside = (dataset.labels >= start) & (dataset.labels < end)
    within = torch.full((len(dataset.classnames),), -1)
    within[start:end] = torch.arange(end - start)
    space = LabelSpace(dataset.classes[start:end], dataset.classnames[start:end])
    half_of = dataset.subset(inside.nonzero().flatten().tolist(), split=dataset.split)
    other = half_of.relabelled(within, space)
    other.name = f"{dataset.name} ({half})"
    return other
