"""Images of data sets as small pictures within a page, of so many bytes in all."""

from __future__ import annotations

import base64
import io
import warnings
from dataclasses import dataclass
from pathlib import Path

from robustft.data.images import FileImages
from robustft.data.pictures import IMAGE_SUFFIXES
from robustft.data.thumbnails import SIDE, thumbnail
from robustft.errors import InputError
from robustft.evaluate.sample_images import SetImages, read_set
from robustft.evaluate.samples import Samples
from robustft.optional import require
from robustft.report.outcomes import Shared

#: Bytes of all data URIs together, of a page that is to stay under 3 MB.
BUDGET = 900_000
_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}


@dataclass(frozen=True)
class Picture:
    """An image as a page shows it: a data URI, its size in pixels, and what it is in words."""

    uri: str
    width: int
    height: int
    alt: str


class Album:
    """Pictures of one report. gone: which images were asked for and could not be shown; full:
    whether one was left out for want of room; notes: sets whose file cannot be read, a line each.
    """

    def __init__(self, budget: int = BUDGET) -> None:
        self.budget = self.left = budget
        self.full = False
        self.gone: set[tuple[Path, int]] = set()
        self.notes: list[str] = []
        self._sets: dict[Path, SetImages | None] = {}
        self._made: dict[tuple[str, int], bytes] = {}

    def has(self, shared: Shared, place: int, own: Samples | None = None) -> bool:
        """Whether there may be a picture of the image at `place` among the set's samples."""
        images = self.set_of(shared)
        row = int(shared.index[place])
        if images is None or row >= images.count:
            return False
        known = images.paths is not None or row in images.thumbnails
        return known or (own is not None and row in own.thumbnails)

    def picture(self, shared: Shared, place: int, own: Samples | None = None) -> Picture | None:
        """That picture; None where its file is gone or damaged, or no room is left. own: samples
        that may have thumbnails of their own."""
        if not self.has(shared, place, own):
            return None
        images = self.set_of(shared)
        assert images is not None
        row = int(shared.index[place])
        extra = {} if own is None else own.thumbnails
        data = images.thumbnails.get(row) or extra.get(row)
        try:
            if data is None and images.paths is not None:
                of = images.paths[row], images.border
                data = self._made[of] = self._made.get(of) or _small(*of)
            kind, width, height = _checked(data or b"")
        except (InputError, OSError, MemoryError):
            self.gone.add((shared.set_file, row))
            return None
        uri = f"data:{kind};base64,{base64.b64encode(data or b'').decode('ascii')}"
        if len(uri) > self.left:
            self.full = True
            return None
        self.left -= len(uri)
        name = self.class_name(shared, int(shared.labels[place]))
        alt = f"Image {row} of {shared.dataset}, labelled {name}"
        return Picture(uri, width, height, alt)

    def class_name(self, shared: Shared, label: int) -> str:
        """A class as people call it; "nothing" for -1."""
        images = self.set_of(shared)
        if label < 0:
            return "nothing"
        if images is None or label >= len(images.classnames):
            return f"class {label}"
        return images.classnames[label]

    def set_of(self, shared: Shared) -> SetImages | None:
        """What is known of a set's images, or None, with a note, where its file cannot be read."""
        path = shared.set_file
        if path not in self._sets:
            try:
                self._sets[path] = read_set(path)
            except (InputError, OSError) as error:
                self.notes.append(str(error))
                self._sets[path] = None
        return self._sets[path]


def _small(path: str, border: int) -> bytes:
    """The thumbnail of an image file. Errors: InputError or OSError for one that cannot be read."""
    file = Path(path)
    if file.suffix.lower() not in IMAGE_SUFFIXES or not file.is_file():
        raise InputError(f"{path}: no image file")
    with warnings.catch_warnings():  # of a size that is suspect Pillow warns at first
        warnings.simplefilter("ignore")
        warnings.simplefilter(
            "error", require("PIL.Image", extra="openclip").DecompressionBombWarning
        )
        return thumbnail(FileImages([file], border=border)[0])


def _checked(data: bytes) -> tuple[str, int, int]:
    """The media type and the size of an encoded picture that is whole. Errors: InputError."""
    image = require("PIL.Image", extra="openclip")
    try:
        with image.open(io.BytesIO(data), formats=tuple(_TYPES)) as opened:
            if max(opened.size) > SIDE:
                raise InputError(f"got a thumbnail of {opened.size} pixels, expected {SIDE}")
            opened.load()
            return _TYPES[opened.format], *opened.size
    except (OSError, ValueError, SyntaxError, KeyError) as error:
        raise InputError(f"got a thumbnail that is no picture ({error})") from error
