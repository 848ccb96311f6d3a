"""Masks of one image, whatever made them.

    NAME.npz     "masks", bool [M, H, W]; other arrays of M numbers may be weights
    NAME.json    SAM's records, or SA-1B's {"annotations": [...]}: each with COCO's run lengths
                 under "segmentation"; other numbers of a record may be weights
    NAME/        a picture a mask, which is inside where that is not black, in the names' order
    NAME.png     a label map (or .tif): a mask is the pixels of one value

Run lengths as a list are read here, compressed ones (a text) by pycocotools.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robustft.data.classes import sorted_folders
from robustft.data.folders import is_hidden
from robustft.data.pictures import FORMATS, IMAGE_SUFFIXES
from robustft.data.text_files import text_lines
from robustft.errors import InputError
from robustft.optional import require

#: The number of a mask that is all of a picture that is not black.
WHOLE = -1
_MAPS = (".png", ".tif", ".tiff")
_ONE_CHANNEL = ("1", "L", "P", "I", "I;16", "I;16L", "I;16B")


@dataclass(frozen=True)
class Masks:
    """The masks of an image, in `path`. numbers: by which each is asked for; read: the mask of a
    number, bool [H, W]; weights: float64 [M], 1 where none are named; whole: whether WHOLE is a
    number, too."""

    path: Path
    numbers: Sequence[int]
    read: Callable[[int], np.ndarray]
    weights: np.ndarray
    whole: bool = False

    def __getitem__(self, number: int) -> np.ndarray:
        """A mask, bool [H, W]. Errors: InputError for a number that there is not."""
        if number not in self.numbers and not (self.whole and number == WHOLE):
            raise InputError(
                f"{self.path}: got the mask number {number}, expected one of its "
                f"{len(self.numbers)}" + (", or none" if self.whole else "")
            )
        return self.read(number)


def find_masks(folder: Path, stem: str) -> Path | None:
    """What holds the masks of the image `stem` in a folder, or None."""
    places = [folder / f"{stem}{suffix}" for suffix in (".npz", ".json", "", *_MAPS)]
    return next((place for place in places if place.exists()), None)


def files_of(masks: Path) -> list[Path]:
    """The files that masks are read from: what holds them, or the pictures in it."""
    return sorted(masks.iterdir()) if masks.is_dir() else [masks]


def open_masks(path: Path, weight: str | None = None) -> Masks:
    """The masks in a file or folder of one of the forms above.

    weight: the array of an .npz, or the number of a JSON record, that is a mask's weight.
    Errors: InputError naming the file, and what of it cannot be used.
    """
    if not path.exists():
        raise InputError(f"masks not found: {path}")
    if path.is_dir():
        masks = _of_pictures(path)
    elif path.suffix.lower() == ".npz":
        return _of_arrays(path, weight)
    elif path.suffix.lower() == ".json":
        return _of_records(path, weight)
    else:
        masks = _of_map(path)
    if weight is not None:
        raise InputError(f"weight: got {weight!r} and {path}, expected .npz or .json files")
    return masks


def read_label_map(path: Path) -> np.ndarray:
    """A label map as int32 [H, W]: a PNG or TIFF of one channel of 8 or 16 bits, where a palette's
    colours do not count.

    Errors: InputError naming the file.
    """
    image = require("PIL.Image", extra="openclip")
    try:
        with image.open(path, formats=("PNG", "TIFF")) as opened:
            mode, values = opened.mode, np.asarray(opened)
    except FileNotFoundError as error:
        raise InputError(f"label map not found: {path}") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow reports damage as many kinds of error, by format
        raise InputError(f"{path}: not a label map: {_first_line(error)}") from error
    if mode not in _ONE_CHANNEL:
        raise InputError(
            f"{path}: got a picture of the mode {mode}, expected a label map: one channel with the "
            "number of a class in each pixel"
        )
    return values.astype(np.int32)


def decode_runs(counts: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """COCO's uncompressed run lengths as bool [H, W]: outside and inside in turn, down the columns.

    Errors: InputError where they are not as many as the pixels of `size`, [H, W].
    """
    height, width = size
    runs = np.asarray(counts, dtype=np.int64)
    if (runs < 0).any() or int(runs.sum()) != height * width:
        raise InputError(
            f"counts: got {int(runs.sum())} pixels, expected {height} × {width} of runs ≥ 0"
        )
    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, runs).reshape(width, height).T


def _of_arrays(path: Path, weight: str | None) -> Masks:
    try:
        with np.load(path, allow_pickle=False) as held:
            masks = held["masks"]
            weights = np.ones(len(masks)) if weight is None else held[weight]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not an .npz of masks: {_first_line(error)}") from error
    if masks.dtype != np.bool_ or masks.ndim != 3:
        raise InputError(
            f"{path}: masks: got {masks.dtype} {list(masks.shape)}, expected bool [M, H, W]"
        )
    return Masks(path, range(len(masks)), masks.__getitem__, _checked(path, weights, len(masks)))


def _of_records(path: Path, weight: str | None) -> Masks:
    try:
        found = json.loads("".join(text_lines(path)))
        records = found["annotations"] if isinstance(found, dict) else found
        runs = [record["segmentation"] for record in records]
        sizes = [tuple(map(int, run["size"])) for run in runs]
        counts = [run["counts"] for run in runs]
        weights = [1.0 if weight is None else float(record[weight]) for record in records]
    except (ValueError, TypeError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path}: expected records with run lengths as SAM writes them, not so: "
            f"{type(error).__name__}: {_first_line(error)}"
        ) from error

    def read(number: int) -> np.ndarray:
        try:
            if isinstance(counts[number], str):
                coco = require("pycocotools.mask", extra="masks")
                run = {"size": list(sizes[number]), "counts": counts[number].encode()}
                return np.asarray(coco.decode(run)).astype(bool)
            return decode_runs(counts[number], sizes[number])
        except (ValueError, TypeError) as error:
            raise InputError(f"{path}: mask {number}: {_first_line(error)}") from error

    return Masks(path, range(len(runs)), read, _checked(path, weights, len(runs)))


def _of_pictures(folder: Path) -> Masks:
    names = sorted_folders(
        each.name
        for each in folder.iterdir()
        if each.suffix.lower() in IMAGE_SUFFIXES and not is_hidden(each.name)
    )
    count = len(names)
    return Masks(folder, range(count), lambda n: _inside(folder / names[n]), np.ones(count))


def _of_map(path: Path) -> Masks:
    values = read_label_map(path)
    numbers = np.unique(values).tolist()

    def read(number: int) -> np.ndarray:
        return values != 0 if number == WHOLE else values == number

    return Masks(path, numbers, read, np.ones(len(numbers)), whole=True)


def _inside(path: Path) -> np.ndarray:
    image = require("PIL.Image", extra="openclip")
    try:
        with image.open(path, formats=FORMATS) as opened:
            return np.asarray(opened.convert("L")) > 0
    except MemoryError:
        raise
    except Exception as error:  # as above
        raise InputError(f"{path}: not a picture of a mask: {_first_line(error)}") from error


def _checked(path: Path, weights: Any, count: int) -> np.ndarray:
    found = np.asarray(weights, dtype=np.float64)
    if found.shape != (count,) or not (found >= 0).all() or not np.isfinite(found).all():
        raise InputError(f"{path}: weights: expected {count} numbers that are not below 0")
    return found


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
