"""Class names and images of a data set, beside what models said of them: one file a set.

Of image files the paths are kept, of other images thumbnails: of all of them where they lie in
memory and are few, else of a fixed choice, many times what a report shows. safetensors with

    paths                  uint8: the absolute paths, each ended by a zero byte, compressed by zlib
    thumbnails, ends, rows uint8, int64 [K], int32 [K]: K pictures one after the other (PNG, JPEG or
                           WebP of at most 96 pixels a side), where each ends, and of which images

and class names in the header. The file's name has a hash of what the set is, so that files of one
name are of the same images in the same order.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from robustft.data.images import FileImages, StoredImages, TensorImages
from robustft.data.thumbnails import fixed_order, thumbnail
from robustft.errors import InputError
from robustft.models.tensor_files import read_description, read_tensors, write_tensors

if TYPE_CHECKING:
    from robustft.data.datasets import ImageDataset

#: Of a set in memory at most so many thumbnails are kept, of at most so many bytes; of images that
#: are read or computed anew when they are asked for, fewer.
MOST_IMAGES, MOST_BYTES, MOST_ANEW = 128, 2**16, 16
_KEY = "robustft.set"
_LARGEST = 2**31  # bytes of a file
_LONGEST = 2**30  # bytes of all paths
_WIDEST = 2**12  # pixels of a border


@dataclass(frozen=True)
class SetImages:
    """What is kept of a set's images. paths: one an image, or None; border: pixels that are cut
    off at each edge of a file's image; thumbnails: encoded pictures by row."""

    dataset: str
    classnames: tuple[str, ...]
    count: int
    paths: Sequence[str] | None
    border: int
    thumbnails: Mapping[int, bytes]


class SetFile:
    """The file of a data set, made when it is first to be written."""

    def __init__(self, dataset: ImageDataset) -> None:
        self.dataset = dataset

    def write(self, folder: Path) -> str:
        """Write it into `folder`, unless it is there; its name."""
        if not (folder / self.name).is_file():
            write_tensors(folder / self.name, *self._content)
        return self.name

    def thumbnails(self, rows: Sequence[int]) -> dict[int, bytes]:
        """Those of `rows` that the file itself has not; none of image files."""
        pictures = self._pictures
        if pictures is None:
            return {}
        made = {row: _small(pictures, row) for row in rows if row not in self._kept}
        return {row: small for row, small in made.items() if small is not None}

    @cached_property
    def name(self) -> str:
        data, images = self.dataset, self.dataset.images
        total = hashlib.sha256(json.dumps([data.name, data.split, data.classnames]).encode())
        total.update(data.labels.numpy().tobytes())
        if isinstance(images, FileImages):
            total.update(str(images.border).encode())
            for path in _encoded(images.paths):
                total.update(path)
        elif self._pictures is not None and hasattr(self._pictures, "identity"):
            total.update(str(self._pictures.identity()).encode())
        return f"set-{slug(data.name)}-{total.hexdigest()[:16]}.safetensors"

    @cached_property
    def _pictures(self) -> Any:
        """The images as pictures, where they are not in files of their own; None where they have
        become tensors alone."""
        images = self.dataset.images
        if isinstance(images, TensorImages):
            images = images.pictures
        return None if isinstance(images, FileImages) else images

    @cached_property
    def _kept(self) -> dict[int, bytes]:
        pictures, found, size = self._pictures, dict[int, bytes](), 0
        if pictures is None:
            return found
        most = MOST_ANEW if isinstance(pictures, StoredImages) else MOST_IMAGES
        rows = np.arange(len(pictures))
        for row in fixed_order(self.dataset.name, rows)[:most].tolist():
            if (small := _small(pictures, row)) is None:
                continue
            size += len(small)
            if size > MOST_BYTES:
                break
            found[row] = small
        return found

    @property
    def _content(self) -> tuple[dict[str, Tensor], str, dict[str, Any]]:
        data = self.dataset
        facts = {
            "format": 1,
            "dataset": data.name,
            "classnames": data.classnames,
            "count": len(data),
            "border": getattr(data.images, "border", 0),
        }
        if isinstance(data.images, FileImages):
            packed = zlib.compress(b"".join(_encoded(data.images.paths)), level=1)
            return {"paths": _bytes(packed)}, _KEY, facts
        return pack(self._kept), _KEY, facts


def read_set(path: Path) -> SetImages:
    """Read what `SetFile` wrote. Errors: OSError; InputError, naming the file, for any other."""
    tensors, facts = read_checked(path, _KEY)
    try:
        names, count, border = facts["classnames"], int(facts["count"]), int(facts["border"])
        if not (0 <= border <= _WIDEST and count > 0):
            raise ValueError(f"{count} images with a border of {border}")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("class names that are no texts")
        paths = _paths(tensors["paths"], count) if "paths" in tensors else None
        pictures = unpack(tensors, count)
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise InputError(f"{path}: got a file that is no data set's ({error})") from error
    return SetImages(str(facts.get("dataset")), tuple(names), count, paths, border, pictures)


def read_checked(path: Path, key: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file and what describes them. Errors: OSError; InputError, naming the file,
    for one that is damaged, too large, or has nothing under `key` in format 1."""
    seen = os.stat(path)
    if not stat.S_ISREG(seen.st_mode) or seen.st_size > _LARGEST:
        raise InputError(f"{path}: got no file, or one of more than {_LARGEST} bytes")
    facts = read_description(path, key)
    if facts is None or facts.get("format") != 1:
        raise InputError(f"{path}: got a file without {key} of format 1, expected one of robustft")
    return read_tensors(path, key), facts


def slug(text: str) -> str:
    """Letters, digits and dashes, so that any name can be part of a file's."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")[:48] or "x"


def pack(pictures: Mapping[int, bytes]) -> dict[str, Tensor]:
    """Encoded pictures by row as tensors."""
    ends = torch.tensor([len(data) for data in pictures.values()], dtype=torch.int64).cumsum(0)
    rows = torch.tensor(list(pictures), dtype=torch.int32)
    return {"thumbnails": _bytes(b"".join(pictures.values())), "ends": ends, "rows": rows}


def unpack(tensors: Mapping[str, Tensor], count: int) -> dict[int, bytes]:
    """What `pack` was given, of a set of `count` images. Errors: ValueError."""
    if "thumbnails" not in tensors:
        return {}
    held = tensors["thumbnails"].numpy().tobytes()
    ends, rows = tensors["ends"].tolist(), tensors["rows"].tolist()
    starts = [0, *ends][:-1]
    whole = len(ends) == len(rows) and (ends[-1] if ends else 0) == len(held)
    if not whole or any(start > end for start, end in zip(starts, ends, strict=True)):
        raise ValueError("pictures that do not fit together")
    if any(not 0 <= row < count for row in rows):
        raise ValueError("a picture of an image that the set does not have")
    return {row: held[a:b] for row, a, b in zip(rows, starts, ends, strict=True)}


def _small(pictures: Any, row: int) -> bytes | None:
    """A thumbnail; None where there is no image any more, or none that PIL knows."""
    try:
        picture = pictures[row]
    except (InputError, OSError):
        return None
    return thumbnail(picture) if hasattr(picture, "convert") else None


def _encoded(paths: Sequence[Path]) -> Iterator[bytes]:
    here = os.path.abspath("")
    for path in paths:
        yield os.fsencode(os.path.normpath(os.path.join(here, path))) + b"\0"


def _paths(packed: Tensor, count: int) -> list[str]:
    unzip = zlib.decompressobj()
    text = unzip.decompress(packed.numpy().tobytes(), _LONGEST)
    if not unzip.eof:
        raise ValueError(f"paths that are cut off or of more than {_LONGEST} bytes")
    found = [os.fsdecode(part) for part in text.split(b"\0")[:-1]]
    if len(found) != count:
        raise ValueError(f"{len(found)} paths of {count} images")
    return found


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0).byte()
