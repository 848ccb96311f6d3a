"""Images with a class for every pixel, as the masked regions that a model classifies.

Each region is a sample like any other image: its label is the class that most of its labelled
pixels have. So every method trains on regions and every ensemble mixes what is said of them;
robustft.evaluate.segmentation puts the classes of an image's regions together again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from robustft import cache
from robustft.atomic import replacing
from robustft.data.classes import LabelSpace
from robustft.data.crops import Crop, MaskedCrops
from robustft.data.datasets import ImageDataset, stratified_split
from robustft.data.images import file_states
from robustft.data.masks import files_of, open_masks, read_label_map
from robustft.errors import InputError

ASSEMBLIES = ("sum", "highest")
#: Of a label map's value that is no class, and of one that is not expected.
IGNORED, UNKNOWN = -1, -2
_VALUES = 2**16
_FORMAT = "1"  # of a kept index; another is made anew


class Scene(NamedTuple):
    """An image file, its label map, and what holds its masks: the label map itself, whose regions
    then are the ground truth's own."""

    picture: Path
    truth: Path
    masks: Path


class Index(NamedTuple):
    """The regions of scenes: int64 [N] scene and number of the mask in it, int64 [N] label, float64
    [N] weight of the mask."""

    scene: np.ndarray
    number: np.ndarray
    label: np.ndarray
    weight: np.ndarray


class RegionDataset(ImageDataset):
    """The masked regions of scenes, each as an image (robustft.data.crops), and the ground truth.

    scenes: the images, also those without a region; index: the regions; lookup: int64 [65536], the
    label of each value of a label map, IGNORED or UNKNOWN; assembly: how regions become a map of
    classes, "sum" or "highest" (robustft.evaluate.segmentation.assemble). The rest as for
    `ImageDataset`.
    """

    def __init__(
        self,
        scenes: Sequence[Scene],
        index: Index,
        *,
        lookup: np.ndarray,
        crop: Crop | None = None,
        assembly: str = "sum",
        **rest: Any,
    ) -> None:
        if assembly not in ASSEMBLIES:
            raise InputError(f"assembly: got {assembly!r}, expected one of {', '.join(ASSEMBLIES)}")
        crops = MaskedCrops(
            [scenes[k].picture for k in index.scene],
            [scenes[k].masks for k in index.scene],
            index.number,
            crop,
        )
        super().__init__(crops, index.label, **rest)
        self.scenes, self.crops = list(scenes), crops
        self.scene = torch.from_numpy(np.asarray(index.scene, dtype=np.int64))
        self.weight = torch.from_numpy(np.asarray(index.weight, dtype=np.float64))
        self.lookup = torch.from_numpy(lookup)
        self.assembly = assembly

    def truth(self, scene: int) -> Tensor:
        """The label of each pixel of a scene, int64 [H, W], IGNORED where it has none."""
        return torch.from_numpy(labelled(self.scenes[scene].truth, self.lookup.numpy()))

    def mask(self, row: int) -> Tensor:
        """The mask of a region, bool [H, W]."""
        return torch.from_numpy(np.ascontiguousarray(self.crops.mask(row)))

    @property
    def held(self) -> str:
        return f"{len(self):,} regions of {len(self.scenes):,} images"

    def relabelled(self, index: Tensor, space: LabelSpace) -> RegionDataset:
        other: RegionDataset = super().relabelled(index, space)  # type: ignore[assignment]
        other.lookup = torch.where(self.lookup < 0, self.lookup, index[self.lookup.clamp(min=0)])
        return other

    def carved(self, fractions: Sequence[float], seed: Sequence[int]) -> list[np.ndarray]:
        """By whole images: regions of one image are not told apart by chance."""
        parts = stratified_split(torch.zeros(len(self.scenes)), fractions, seed)
        scene = self.scene.numpy()
        return [np.flatnonzero(np.isin(scene, part)) for part in parts]

    def _take(self, rows: list[int]) -> Any:
        """The regions `rows`, with the scenes that these belong to."""
        other = super()._take(rows)
        kept, other.scene = self.scene[rows].unique(return_inverse=True)
        other.scenes = [self.scenes[k] for k in kept.tolist()]
        other.crops, other.weight = self.crops.take(rows), self.weight[rows]
        return other


def labelled(path: Path, lookup: np.ndarray) -> np.ndarray:
    """A label map under a lookup, int64 [H, W]. Errors: InputError for a value that is UNKNOWN."""
    values = read_label_map(path)
    found: np.ndarray = lookup[values.clip(0, _VALUES - 1)]
    wrong = (found == UNKNOWN) | (values != values.clip(0, _VALUES - 1))
    if wrong.any():
        known = np.flatnonzero(lookup >= 0)
        raise InputError(
            f"{path}: got the value {values[wrong][0]}, expected {known.min()} to "
            f"{known.max()}, or {', '.join(map(str, np.flatnonzero(lookup == IGNORED)))} for none"
        )
    return found


def make_lookup(labels: Sequence[int], first: int, ignore: Sequence[int]) -> np.ndarray:
    """The label of each value of a label map: labels[i] of the value first + i; values below
    `first` and those in `ignore` have none.

    Errors: InputError for values that no label map of 16 bits has.
    """
    for name, values in (("ignore", ignore), ("first", [first])):
        wrong = next((v for v in values if not 0 <= v < _VALUES), None)
        if wrong is not None:
            raise InputError(f"{name}: got {wrong}, expected 0 to {_VALUES - 1}")
    if first + len(labels) > _VALUES:
        raise InputError(f"first: got {first} with {len(labels)} classes, expected 16 bits")
    lookup = np.full(_VALUES, UNKNOWN, dtype=np.int64)
    lookup[first : first + len(labels)] = labels
    lookup[:first] = IGNORED
    lookup[list(ignore)] = IGNORED
    return lookup


def find_regions(
    scenes: Sequence[Scene], lookup: np.ndarray, *, weight: str | None = None
) -> Index:
    """The regions of scenes that have a labelled pixel; the others bear on no measure.

    A region's label is the class of most of its pixels, of equals the first. All masks and label
    maps are read, once: the index is kept in the cache folder for as long as no file changes.
    Errors: InputError naming a file that cannot be used, or masks of another size.
    """
    about = hashlib.sha256(f"{_FORMAT} {weight}".encode() + lookup.tobytes())
    for state in file_states(file for s in scenes for path in s for file in files_of(path)):
        about.update(state)
    kept = cache.folder() / "regions" / f"{about.hexdigest()[:32]}.npz"
    try:
        with np.load(kept, allow_pickle=False) as held:
            return Index(*(held[field] for field in Index._fields))
    except (OSError, ValueError, KeyError):
        pass
    rows = [
        (k, *region) for k, each in enumerate(scenes) for region in _regions(each, lookup, weight)
    ]
    whole, weights = [row[:3] for row in rows], [row[3] for row in rows]
    scene, number, label = np.array(whole, dtype=np.int64).reshape(-1, 3).T
    found = Index(scene, number, label, np.array(weights, dtype=np.float64))
    try:
        with replacing(kept) as temporary:
            np.savez(temporary, **found._asdict())
    except OSError:  # no room or no right: then it is of this process alone
        pass
    return found


def _regions(scene: Scene, lookup: np.ndarray, weight: str | None) -> list[tuple[int, int, float]]:
    """(number, label, weight) of each region of one scene."""
    truth = labelled(scene.truth, lookup)
    own = scene.masks == scene.truth
    masks = open_masks(scene.masks, None if own else weight)
    found = []
    for number, weighs in zip(masks.numbers, masks.weights.tolist(), strict=True):
        mask = masks[number]
        if mask.shape != truth.shape:
            raise InputError(
                f"{scene.masks}: got masks of {mask.shape[1]} × {mask.shape[0]} pixels, expected "
                f"{truth.shape[1]} × {truth.shape[0]} as {scene.truth} has"
            )
        labels = truth[mask]
        labels = labels[labels >= 0]
        if len(labels):
            found.append((int(number), int(np.bincount(labels).argmax()), float(weighs)))
    return found
