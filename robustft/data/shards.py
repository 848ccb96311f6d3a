"""Image-caption pairs in tar shards, as img2dataset writes and webdataset reads them.

A sample is the members that share a name up to its first dot: an image, and its caption as .txt, or
under "caption" in .json. The headers of all shards are read once, and what was found is kept in the
cache folder as plain arrays that processes map and share. Then an image is one seek and one read,
so that a run resumes in the middle of a shard as it does in the middle of a folder.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np

from robustft import cache
from robustft.atomic import replacing_folder, write_json
from robustft.data.datasets import PairDataset
from robustft.data.images import DAMAGED_SHARE, StoredImages
from robustft.data.pictures import IMAGE_SUFFIXES, UnreadableImageError, read_picture
from robustft.errors import InputError, warn

_FORMAT = "1"  # of what is kept; another number is read anew
_SAID = 5  # damaged shards that are named one by one


class Index(NamedTuple):
    """Where samples lie. shard, offset, size: int64 [N], of the image; texts: uint8, all captions
    in UTF-8 one after the other; ends: int64 [N], where each ends."""

    shard: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    texts: np.ndarray
    ends: np.ndarray


class Texts(Sequence[str]):
    """Captions out of one array of bytes, decoded when they are asked for."""

    def __init__(self, texts: np.ndarray, ends: np.ndarray) -> None:
        self._texts, self._ends = texts, ends

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        start = int(self._ends[place - 1]) if place else 0
        return bytes(self._texts[start : int(self._ends[place])]).decode("utf-8")


class ShardImages(StoredImages):
    """Images in tar shards. shard, offset, size: int64 [N], where each lies."""

    def __init__(
        self, shards: Sequence[Path], shard: np.ndarray, offset: np.ndarray, size: np.ndarray
    ) -> None:
        super().__init__(len(shard))
        self.shards = list(shards)
        self.shard, self.offset, self.size = shard, offset, size

    def _read(self, index: int) -> Any:
        path, size = self.shards[int(self.shard[index])], int(self.size[index])
        try:
            with open(path, "rb") as file:
                file.seek(int(self.offset[index]))
                held = file.read(size)
        except OSError as error:
            raise UnreadableImageError(f"cannot read {path}: {error.strerror}") from error
        return read_picture(Path(self.where(index)), file=io.BytesIO(held))

    def where(self, index: int) -> str:
        return f"{self.shards[int(self.shard[index])]} at byte {int(self.offset[index])}"

    def take(self, rows: Sequence[int]) -> ShardImages:
        chosen = np.asarray(rows, dtype=np.int64)
        return ShardImages(self.shards, self.shard[chosen], self.offset[chosen], self.size[chosen])

    def identity(self) -> str:
        """A hash of the shards' paths, sizes and times of change, and of which images these are."""
        total = hashlib.sha256(_states(self.shards))
        total.update(np.ascontiguousarray(self.shard).tobytes())
        total.update(np.ascontiguousarray(self.offset).tobytes())
        return total.hexdigest()


def load_shards(folder: Path, name: str) -> PairDataset:
    """The pairs of all .tar files in a folder, in the order of their names.

    Of a shard that is cut off or damaged the whole samples before the damage are taken; it is
    counted and named in a warning. Samples without a caption are left out, and counted.
    Errors: InputError where there is no shard, or more than DAMAGED_SHARE of them are damaged.
    """
    shards = sorted(path for path in folder.iterdir() if path.suffix == ".tar")
    if not shards:
        raise InputError(f"{name}: got no .tar file in {folder}, expected shards of pairs")
    states = hashlib.sha256(_states(shards)).hexdigest()
    kept = cache.folder() / "shards" / states[:32]
    try:
        index, notes = _kept(kept)
    except (OSError, ValueError):
        index, notes = _keep(*_build(shards, name), kept)
    for note in notes:
        warn(note)
    images = ShardImages(shards, index.shard, index.offset, index.size)
    return PairDataset(images, Texts(index.texts, index.ends), name=name)


def _build(shards: Sequence[Path], name: str) -> tuple[Index, list[str]]:
    """The index of shards, and what is to be said of them whenever it is used."""
    rows: list[tuple[int, int, int]] = []
    notes: list[str] = []
    texts, ends = bytearray(), []
    damaged = without = 0
    for number, path in enumerate(shards):
        before = len(rows)
        samples = _samples(path)
        while True:
            try:
                sample = next(samples, None)
            except (tarfile.TarError, OSError, EOFError) as error:
                damaged += 1
                note = _damage(path, error, len(rows) - before, damaged, len(shards))
                notes += [note] if damaged <= _SAID else []
                break
            if sample is None:
                break
            offset, size, caption = sample
            if not caption.strip():
                without += 1
                continue
            rows.append((number, offset, size))
            texts += caption.encode("utf-8", "replace")
            ends.append(len(texts))
    if not rows:
        raise InputError(f"{name}: got no image with a caption in {len(shards)} shards")
    if damaged > _SAID:
        notes.append(
            f"{name}: {damaged} of {len(shards)} shards are damaged, five of which are named"
        )
    if without:
        notes.append(f"{name}: {without} samples have no caption and are left out")
    shard, offset, size = np.array(rows, dtype=np.int64).T
    index = Index(shard, offset, size, np.frombuffer(texts, np.uint8), np.array(ends, np.int64))
    return index, notes


def _damage(path: Path, error: Exception, whole: int, damaged: int, shards: int) -> str:
    text = f"shard {path} is damaged after {whole} pairs: {error}"
    if damaged > DAMAGED_SHARE * shards:
        raise InputError(
            f"{text} ({damaged} of {shards} shards are damaged; up to {DAMAGED_SHARE:.0%} would be "
            "left out)"
        ) from error
    return f"{text}; the rest of it is left out, as of {damaged} of {shards} shards"


def _samples(path: Path) -> Iterator[tuple[int, int, str]]:
    """(offset, size, caption) of each whole sample of a shard; tarfile's errors where it ends."""
    with tarfile.open(path, "r:") as tar:
        key, image, caption = None, None, ""
        for member in tar:
            if not member.isfile():
                continue
            stem, _, suffix = member.name.partition(".")
            if stem != key:
                if image is not None:
                    yield (*image, caption)
                key, image, caption = stem, None, ""
            kind = "." + suffix.lower()
            if kind in IMAGE_SUFFIXES:
                image = (member.offset_data, member.size)
            elif kind == ".txt" or (kind == ".json" and not caption):
                caption = _caption(tar, member) or caption
        if tar.offset >= os.path.getsize(path):  # a whole one ends with empty blocks
            raise tarfile.ReadError("it ends without an end mark")
        if image is not None:
            yield (*image, caption)


def _caption(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    opened = tar.extractfile(member)
    text = b"" if opened is None else opened.read()
    if not member.name.endswith(".json"):
        return text.decode("utf-8", "replace").strip()
    try:
        found = json.loads(text)
    except ValueError:
        return ""
    value = found.get("caption") if isinstance(found, dict) else None
    return value.strip() if isinstance(value, str) else ""


def _states(paths: Sequence[Path]) -> bytes:
    """Paths, sizes and times of change: what an index is of."""
    seen = [(os.path.abspath(path), os.stat(path)) for path in paths]
    text = _FORMAT + "".join(f"\0{path}\0{s.st_size} {s.st_mtime_ns}" for path, s in seen)
    return text.encode("utf-8", "surrogateescape")


def _keep(index: Index, notes: list[str], folder: Path) -> tuple[Index, list[str]]:
    """Write an index beside the others, whole or not at all, and map what was written."""
    try:
        with replacing_folder(folder) as made:
            for field, array in zip(Index._fields, index, strict=True):
                np.save(made / f"{field}.npy", array)
            write_json(made / "notes.json", notes)
        return _kept(folder)
    except OSError:  # no room or no right: then it is of this process alone
        return index, notes


def _kept(folder: Path) -> tuple[Index, list[str]]:
    notes = json.loads((folder / "notes.json").read_text(encoding="utf-8"))
    arrays = (np.load(folder / f"{field}.npy", mmap_mode="r") for field in Index._fields)
    return Index(*arrays), [str(note) for note in notes]
