"""Sequences of images: in memory, in files, or already transformed to tensors."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robustft.data.pictures import UnreadableImageError, read_picture
from robustft.errors import InputError, warn
from robustft.optional import require

# Of a set of image files at most this share may be damaged or missing; more is an error.
DAMAGED_SHARE = 0.01
_SAID = 5  # damaged files that are named one by one


class ArrayImages(Sequence[Any]):
    """Images held in memory as uint8 [N, H, W, 3]; indexing gives a PIL image."""

    def __init__(self, pixels: np.ndarray) -> None:
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
            raise InputError(
                f"images: got {pixels.dtype} {list(pixels.shape)}, expected uint8 [N, H, W, 3]"
            )
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: Any) -> Any:
        return require("PIL.Image", extra="openclip").fromarray(self.pixels[index])

    def identity(self) -> str:
        """A hash of all pixels."""
        return _hash(self.pixels)


class StoredImages(Sequence[Any]):
    """Images that are decoded when they are asked for, some of which may be damaged. Indexing gives
    an upright RGB PIL image (robustft.data.pictures), or raises UnreadableImageError.

    damaged: bool [N], which images were found unreadable, in this process or in a worker (the
    tensor lies in shared memory). A subclass has `_read`, `take` and `where`.
    """

    def __init__(self, count: int) -> None:
        self.damaged = torch.zeros(count, dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.damaged)

    def __getitem__(self, index: Any) -> Any:
        return self._read(index)

    def _read(self, index: int) -> Any:
        raise NotImplementedError

    def take(self, rows: Sequence[int]) -> StoredImages:
        """The images `rows`, in that order."""
        raise NotImplementedError

    def where(self, index: int) -> str:
        """The file of an image, for messages."""
        raise NotImplementedError

    def identity(self) -> str | None:
        """What tells these images from others and from their later states; None: nothing does."""
        return None

    def readable(self, index: int) -> tuple[Any, int]:
        """The image `index`, or in place of a damaged one the next that can be read, and its index:
        a function of the files alone.

        Each damaged image is counted once, and named in a warning.
        Errors: UnreadableImageError if more than DAMAGED_SHARE of the images are damaged.
        """
        for step in range(len(self)):
            place = (index + step) % len(self)
            if self.damaged[place] and self._tolerable():
                continue
            try:
                return self[place], place
            except UnreadableImageError as error:
                self._count(place, error)
        raise UnreadableImageError(f"none of the {len(self)} images can be read")

    def learn_damaged(self, damaged: torch.Tensor) -> None:
        """Count the files that others have found damaged (bool [N]) as if found here."""
        for place in (damaged & ~self.damaged).nonzero().flatten().tolist():
            self._count(place, UnreadableImageError(f"{self.where(place)} cannot be read"))

    def _tolerable(self) -> bool:
        return int(self.damaged.sum()) <= DAMAGED_SHARE * len(self)

    def _count(self, place: int, error: UnreadableImageError) -> None:
        self.damaged[place] = True
        found, total = int(self.damaged.sum()), len(self)
        if not self._tolerable():
            raise UnreadableImageError(
                f"{error} ({found} of {total} images cannot be read; up to "
                f"{DAMAGED_SHARE:.0%} would be left out)"
            ) from error
        if found <= _SAID:
            more = "; further ones are counted only" if found == _SAID else ""
            warn(f"{error}; it is left out, as {found} of {total} images{more}")


class FileImages(StoredImages):
    """Image files, one an image. border: so many pixels at each edge that are cut off."""

    def __init__(self, paths: Sequence[Path], *, border: int = 0) -> None:
        super().__init__(len(paths))
        self.paths = list(paths)
        self.border = border

    def _read(self, index: int) -> Any:
        picture = read_picture(self.paths[index])
        if not self.border:
            return picture
        width, height = picture.size
        if min(width, height) <= 2 * self.border:
            raise UnreadableImageError(
                f"cannot read the image {self.paths[index]}: {width} × {height} pixels are within "
                f"its border of {self.border}"
            )
        return picture.crop((self.border, self.border, width - self.border, height - self.border))

    def identity(self) -> str:
        """A hash of every file's absolute path, size and time of change: no file is opened."""
        total = hashlib.sha256(f"border {self.border}".encode())
        for state in file_states(self.paths):
            total.update(state)
        return total.hexdigest()

    def where(self, index: int) -> str:
        return str(self.paths[index])

    def take(self, rows: Sequence[int]) -> FileImages:
        return FileImages([self.paths[row] for row in rows], border=self.border)


class TensorImages(Sequence[Any]):
    """Images already transformed: float tensors [N, 3, H, W]. pictures: what they were made of, for
    people to look at, or None."""

    def __init__(self, tensors: torch.Tensor, pictures: Any = None) -> None:
        self.tensors, self.pictures = tensors, pictures

    def __len__(self) -> int:
        return len(self.tensors)

    def __getitem__(self, index: Any) -> Any:
        return self.tensors[index]

    def identity(self) -> str:
        """A hash of all numbers."""
        return _hash(self.tensors.detach().cpu().contiguous().numpy())


def file_states(paths: Iterable[Path]) -> Iterator[bytes]:
    """Path, size and time of change of each file, none of which is opened."""
    for path in paths:
        try:
            seen = os.stat(path)
            state = f"{seen.st_size} {seen.st_mtime_ns}"
        except OSError:
            state = "missing"
        yield f"{os.path.abspath(path)}\0{state}\0".encode("utf-8", "surrogateescape")


def _hash(array: np.ndarray) -> str:
    total = hashlib.sha256(f"{array.dtype} {array.shape}".encode())
    total.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return total.hexdigest()
