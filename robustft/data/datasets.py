"""Datasets of images: labelled ones for classification, captioned ones as reference pairs.

A sample is a pure function of (index, seed): a random transform is run with every global generator
seeded and put back, so that a run resumes with the same images, with any number of workers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from robustft.data.classes import LabelSpace
from robustft.data.corruptions.names import Corrupted
from robustft.data.images import ArrayImages, StoredImages, TensorImages
from robustft.data.templates import Template
from robustft.data.transforms import Transform, is_deterministic, seeded
from robustft.errors import InputError, warn


class _Images(Dataset[dict[str, Any]]):
    """What both kinds of dataset share: images and a transform."""

    def __init__(
        self, images: Sequence[Any] | np.ndarray, *, name: str, transform: Transform | None
    ) -> None:
        self.images = ArrayImages(images) if isinstance(images, np.ndarray) else images
        self.name = name
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def _target(self, index: int) -> dict[str, Any]:
        raise NotImplementedError

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The item `index`. In place of a damaged image file comes the whole item of the next one
        that can be read, with that one's "index" (StoredImages.readable)."""
        index = self._position(index)
        if isinstance(self.images, StoredImages):
            image, index = self.images.readable(index)
        else:
            image = self.images[index]
        if self.transform is not None:
            image = self.transform(image)
        return {"image": image, **self._target(index), "index": index}

    @property
    def damaged(self) -> torch.Tensor:
        """bool [N]: the rows whose image file was found missing or damaged so far."""
        if isinstance(self.images, StoredImages):
            return self.images.damaged
        return torch.zeros(len(self), dtype=torch.bool)

    def stand_ins(self) -> torch.Tensor:
        """int64 [N]: the index of the item that `self[i]` gives, as far as files have been read.

        i itself, unless its image is damaged. Complete after a pass over the dataset.
        """
        damaged, rows = self.damaged, torch.arange(len(self))
        found = rows.clone()
        for row in damaged.nonzero().flatten().tolist():
            after = (rows + row) % len(self)
            found[row] = after[~damaged[after]][0]
        return found

    def say_damaged(self) -> None:
        """Warn, in one line, how many images were left out as damaged, if any were."""
        left_out = int(self.damaged.sum())
        if left_out:
            warn(f"{self.name}: {left_out} of {len(self)} images could not be read, so left out")

    def sample(self, index: int, seed: tuple[int, ...]) -> dict[str, Any]:
        """As `self[index]`, but a random transform is a pure function of `seed` (integers ≥ 0)."""
        if is_deterministic(self.transform):
            return self[index]
        with seeded(seed):
            return self[index]

    def with_transform(self, transform: Transform | None) -> Any:
        """A copy that applies `transform` to each PIL image; the images are shared."""
        if isinstance(self.images, TensorImages) and transform is not None:
            raise InputError(
                f"the images of {self.name!r} are preloaded and already transformed; set the "
                "transform before preloading"
            )
        other = copy.copy(self)
        other.transform = transform
        return other

    def preloaded(self, transform: Transform | None = None) -> Any:
        """A copy with every image transformed once and kept in memory as one tensor.

        `transform` (default: the present one) must give tensors of one shape and draw nothing at
        random. Damaged image files are left out. Errors: InputError for a random one or none.
        """
        transform = transform if transform is not None else self.transform
        if isinstance(self.images, TensorImages) and transform is None:
            return self
        if transform is None or not is_deterministic(transform):
            raise InputError(
                f"preloading {self.name!r} needs a transform to tensors without random parts, "
                f"got {transform!r}"
            )
        source = self.with_transform(transform)
        tensors = torch.stack([source[index]["image"] for index in range(len(self))])
        rows = (~self.damaged).nonzero().flatten()
        other = copy.copy(self) if len(rows) == len(self) else self._take(rows.tolist())
        known = isinstance(other.images, StoredImages | ArrayImages)
        other.images = TensorImages(tensors[rows], other.images if known else None)
        other.transform = None
        return other

    def _take(self, rows: list[int]) -> Any:
        other = copy.copy(self)
        other.images = _taken(self.images, rows)
        return other

    def _position(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is outside {self.name!r}, which has {len(self)}")
        return index % len(self)


def _taken(images: Any, rows: list[int]) -> Any:
    """The images `rows`, in that order."""
    if isinstance(images, StoredImages):
        return images.take(rows)
    if isinstance(images, ArrayImages):
        return ArrayImages(images.pixels[rows])
    if isinstance(images, TensorImages):
        pictures = None if images.pictures is None else _taken(images.pictures, rows)
        return TensorImages(images.tensors[rows], pictures)
    return [images[row] for row in rows]


class ImageDataset(_Images):
    """Labelled images.

    images: uint8 array [N, H, W, 3] or a sequence of PIL images (`FileImages`); labels: int [N],
    indices into `classnames`, in which a name may stand twice, or, where there are no classes (no
    class names), whatever tells which images belong together. classes: what identifies each
    class, its folder or (the default) its index as text. templates: prompts that suit the classes,
    strings with "{}" or functions of the class name, or None. captions: one text an image, or None.
    class_subset: the classes that occur, where a test set covers only a part of the training
    classes (accuracy is then taken among these), or None. merged: classes that the set does not
    tell apart, in disjoint lists: the first of each stands for all, in `labels` and `class_subset`,
    and its logit is the maximum over them (ObjectNet's, of ImageNet's).
    drawn: which rows of the whole split these are, where few were drawn (robustft.data.few_shot).
    corrupted: what its images are under (robustft.data.corruptions), or None.
    groups: int [N], indices into `group_names`, -1 for images that are in none; metrics: what is
    measured beside top-1: "macro-f1", "worst-group", "each-group".
    Items: {"image": tensor (PIL without a transform), "label": int, "index": int}.
    """

    def __init__(
        self,
        images: Sequence[Any] | np.ndarray,
        labels: Sequence[int] | np.ndarray | torch.Tensor,
        *,
        classnames: Sequence[str],
        classes: Sequence[str] | None = None,
        templates: Sequence[Template] | None = None,
        name: str,
        split: str,
        captions: Sequence[str] | None = None,
        class_subset: Sequence[int] | torch.Tensor | None = None,
        merged: Sequence[Sequence[int]] | None = None,
        groups: Sequence[int] | np.ndarray | torch.Tensor | None = None,
        group_names: Sequence[str] = (),
        metrics: Sequence[str] = (),
        transform: Transform | None = None,
    ) -> None:
        super().__init__(images, name=name, transform=transform)
        self.split = split
        self.drawn: list[int] | None = None
        self.corrupted: Corrupted | None = None
        self.classnames = list(classnames)
        self.classes = list(map(str, range(len(self.classnames)) if classes is None else classes))
        if len(self.classes) != len(self.classnames) or len(set(self.classes)) < len(self.classes):
            raise InputError(
                f"classes of {name!r}: got {len(set(self.classes))} different ones, expected "
                f"{len(self.classnames)}, one a class name"
            )
        self.templates = None if templates is None else list(templates)
        self.labels = torch.as_tensor(labels, dtype=torch.long)
        self.captions = None if captions is None else list(captions)
        self.class_subset = (
            None if class_subset is None else torch.as_tensor(class_subset, dtype=torch.long)
        )
        self.merged = None if merged is None else [list(group) for group in merged]
        self.group_names, self.metrics = list(group_names), tuple(metrics)
        self.groups = None if groups is None else torch.as_tensor(groups, dtype=torch.long)
        if self.merged is not None:
            every = [label for group in self.merged for label in group]
            if len(every) != len(set(every)) or not all(self.merged):
                raise InputError(f"merged of {name!r}: got a class twice, expected disjoint lists")
        if self.groups is not None and self.groups.shape != (len(self),):
            raise InputError(
                f"groups of {name!r}: got {list(self.groups.shape)}, expected [{len(self)}]"
            )
        if self.labels.shape != (len(self),):
            raise InputError(
                f"labels of {name!r}: got {list(self.labels.shape)}, expected [{len(self)}]"
            )
        if len(self) and self.classnames:
            low, high = int(self.labels.min()), int(self.labels.max())
            if not 0 <= low <= high < len(self.classnames):
                raise InputError(
                    f"labels of {name!r}: got {low}..{high}, expected 0..{len(self.classnames) - 1}"
                )
        if self.captions is not None and len(self.captions) != len(self):
            raise InputError(
                f"captions of {name!r}: got {len(self.captions)} texts, expected {len(self)}"
            )

    @property
    def held(self) -> str:
        """How much it holds, in words."""
        return f"{len(self):,} images"

    @property
    def label_space(self) -> LabelSpace:
        """What identifies the classes, and their names, in label order; see classes.places."""
        return LabelSpace(self.classes, self.classnames)

    def _target(self, index: int) -> dict[str, Any]:
        return {"label": int(self.labels[index])}

    def relabelled(self, index: torch.Tensor, space: LabelSpace) -> ImageDataset:
        """A copy in other classes; index: int64, the label there of each of its own classes."""
        other = copy.copy(self)
        other.labels = index[self.labels]
        other.classnames, other.classes = space.names, space.classes
        return other

    def carved(self, fractions: Sequence[float], seed: Sequence[int]) -> list[np.ndarray]:
        """Disjoint, covering rows in these fractions, as `stratified_split` draws them; of images
        without classes parts of all."""
        labels = self.labels if self.classnames else torch.zeros_like(self.labels)
        return stratified_split(labels, fractions, seed)

    def subset(self, indices: Sequence[int] | np.ndarray, *, split: str) -> ImageDataset:
        """The rows `indices`, in that order, as a dataset of the split `split`."""
        other: ImageDataset = self._take([int(index) for index in indices])
        other.split = split
        return other

    def _take(self, rows: list[int]) -> Any:
        other = super()._take(rows)
        other.labels = self.labels[rows]
        other.captions = None if self.captions is None else [self.captions[row] for row in rows]
        other.groups = None if self.groups is None else self.groups[rows]
        return other


class PairDataset(_Images):
    """Image–caption pairs. Items: {"image", "text": str, "index": int}.

    available: how many there were to draw these from.
    """

    def __init__(
        self,
        images: Sequence[Any] | np.ndarray,
        captions: Sequence[str],
        *,
        name: str,
        transform: Transform | None = None,
        available: int | None = None,
    ) -> None:
        super().__init__(images, name=name, transform=transform)
        self.captions = captions  # perhaps millions, decoded when they are asked for
        self.available = len(self.captions) if available is None else available
        if len(self.captions) != len(self):
            raise InputError(
                f"captions of {name!r}: got {len(self.captions)} texts, expected {len(self)}"
            )

    def _target(self, index: int) -> dict[str, Any]:
        return {"text": self.captions[index]}

    def subset(self, indices: Sequence[int] | np.ndarray) -> PairDataset:
        """The pairs `indices`, in that order."""
        other: PairDataset = self._take([int(index) for index in indices])
        return other

    def _take(self, rows: list[int]) -> Any:
        other = super()._take(rows)
        other.captions = [self.captions[row] for row in rows]
        return other


def stratified_split(
    labels: torch.Tensor, fractions: Sequence[float], seed: Sequence[int]
) -> list[np.ndarray]:
    """Disjoint, covering index arrays (each ascending), class by class in the given fractions.

    Counts are rounded within each class; a fraction above zero gets at least one row of every
    class that has as many rows as there are parts. Pure function of (labels, fractions, seed).
    """
    rng = np.random.default_rng(np.random.SeedSequence(list(seed)))
    parts: list[list[np.ndarray]] = [[] for _ in fractions]
    array = labels.numpy()
    for label in np.unique(array):
        rows = rng.permutation(np.flatnonzero(array == label))
        counts = [max(1, round(len(rows) * fraction)) for fraction in fractions[1:]]
        if len(rows) < len(fractions):  # too few to share out: keep them in the first part
            counts = [0] * len(counts)
        start = len(rows) - sum(counts)
        bounds = np.cumsum([start, *counts])
        for part, chunk in zip(parts, np.split(rows, bounds[:-1]), strict=True):
            part.append(chunk)
    return [np.sort(np.concatenate(part)) for part in parts]
