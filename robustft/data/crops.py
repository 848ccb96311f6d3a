"""Masked crops: each region of an image as an image of its own, its background filled.

As OVSeg (arXiv 2210.04150) shows regions to CLIP: cut out by their bounding box, the mean colour in
place of whatever is outside the mask, stretched to a square.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robustft.data.images import StoredImages, file_states
from robustft.data.masks import Masks, files_of, open_masks
from robustft.data.pictures import read_picture
from robustft.errors import InputError
from robustft.optional import require


@dataclass(frozen=True)
class Crop:
    """How a region becomes an image.

    expand: so many times the sides of its bounding box, about the middle and within the image;
    fill: RGB outside the mask, by default the mean with which OpenAI's CLIP normalises, 255 ·
    (0.481, 0.458, 0.408); square: stretched to a square of the longer side, so that a transform
    that cuts out the middle loses nothing.
    """

    expand: float = 1.0
    fill: tuple[int, int, int] = (123, 117, 104)
    square: bool = True

    def __post_init__(self) -> None:
        if not math.isfinite(self.expand) or self.expand < 1:
            raise InputError(f"expand: got {self.expand}, expected a number from 1 on")
        whole = [c for c in self.fill if isinstance(c, int) and 0 <= c <= 255]
        if len(whole) != 3 or len(self.fill) != 3:
            raise InputError(f"fill: got {self.fill}, expected three numbers from 0 to 255")

    def __call__(self, picture: Any, mask: np.ndarray) -> Any:
        """The region `mask`, bool [H, W], of a PIL RGB image, as one."""
        pixels = np.asarray(picture)
        rows, columns = (_stretch(np.any(mask, axis=axis), self.expand) for axis in (1, 0))
        inside = mask[rows, columns, None]
        found = np.where(inside, pixels[rows, columns], np.array(self.fill, dtype=np.uint8))
        image = require("PIL.Image", extra="openclip")
        cut = image.fromarray(found)
        side = max(cut.size)
        return cut.resize((side, side), image.Resampling.BICUBIC) if self.square else cut


class MaskedCrops(StoredImages):
    """Masked regions of image files, one an image.

    pictures, masks: for each region the image file and what holds its mask (robustft.data.masks);
    numbers: which mask of that. Neighbours of one image are cheap: what was opened last is kept.
    """

    def __init__(
        self,
        pictures: Sequence[Path],
        masks: Sequence[Path],
        numbers: Sequence[int] | np.ndarray,
        crop: Crop | None = None,
    ) -> None:
        super().__init__(len(pictures))
        self.pictures, self.masks = list(pictures), list(masks)
        self.numbers = np.asarray(numbers, dtype=np.int64)
        self.crop = Crop() if crop is None else crop
        self._picture: tuple[Path, Any] | None = None
        self._masks: tuple[Path, Masks] | None = None

    def mask(self, index: int) -> np.ndarray:
        """The mask of a region, bool [H, W]."""
        path = self.masks[index]
        if self._masks is None or self._masks[0] != path:
            self._masks = path, open_masks(path)
        return self._masks[1][int(self.numbers[index])]

    def _read(self, index: int) -> Any:
        path = self.pictures[index]
        if self._picture is None or self._picture[0] != path:
            self._picture = path, read_picture(path)
        picture, mask = self._picture[1], self.mask(index)
        if mask.shape != (picture.height, picture.width):
            raise InputError(
                f"{self.masks[index]}: got masks of {mask.shape[1]} × {mask.shape[0]} pixels, "
                f"expected {picture.width} × {picture.height} as {path} has"
            )
        if not mask.any():
            raise InputError(f"{self.masks[index]}: mask {self.numbers[index]} is empty")
        return self.crop(picture, mask)

    def take(self, rows: Sequence[int]) -> MaskedCrops:
        return MaskedCrops(
            [self.pictures[row] for row in rows],
            [self.masks[row] for row in rows],
            self.numbers[list(rows)],
            self.crop,
        )

    def where(self, index: int) -> str:
        return f"{self.pictures[index]} (mask {self.numbers[index]})"

    def identity(self) -> str:
        """A hash of the files' paths, sizes and times of change, of the masks' numbers, and of how
        they are cut out."""
        total = hashlib.sha256(f"{self.crop}".encode())
        place: dict[Path, int] = {}  # of each file, many regions of which are one after the other
        which = [place.setdefault(path, len(place)) for path in (*self.pictures, *self.masks)]
        total.update(np.array([*which, *self.numbers], dtype=np.int64).tobytes())
        for state in file_states(file for path in place for file in files_of(path)):
            total.update(state)
        return total.hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_picture": None, "_masks": None}  # for a worker process


def _stretch(occupied: np.ndarray, expand: float) -> slice:
    """The range of what is occupied along one side, bool [L], so many times as long."""
    places = np.flatnonzero(occupied)
    start, end = int(places[0]), int(places[-1]) + 1
    more = (end - start) * (expand - 1) / 2
    return slice(max(0, math.floor(start - more)), min(len(occupied), math.ceil(end + more)))
