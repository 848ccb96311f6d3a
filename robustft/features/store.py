"""A folder of features that runs and processes share.

    <root>/image-3f09…/entry.json          what the features are of: their key is its hash
    <root>/image-3f09…/00007.safetensors   rows 7·SHARD up to 8·SHARD, with a checksum
    <root>/image-3f09…/00007.lock          held by the process that computes them

A shard is written under a temporary name and moved when it is whole, so that a process may end at
any moment: what it has finished stays, and its locks go with it. Processes that need the same
features compute different shards, and wait at the end for what others have begun.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustft import atomic, cache, locks
from robustft.errors import InputError, warn
from robustft.features.rows import KEY, Rows
from robustft.models.tensor_files import write_tensors
from robustft.progress import bar

#: Rows a shard: what a killed process loses at most; 8 MB of 512 float32.
SHARD = 4096
#: Rows that are computed at once. Fixed, so that the bits do not hang on who asks.
CHUNK = 64
_ENTRY = "entry.json"
_DAY = 86400.0

Part = dict[str, Tensor]
#: From ranges of rows (taken as they are needed) to each range and its tensors, in order.
Compute = Callable[[Iterator[range]], Iterable[tuple[range, Part]]]


@dataclass(frozen=True)
class Entry:
    """What one key holds: rows that are there and that belong there, and bytes."""

    folder: Path
    kind: str
    data: str
    rows: int
    total: int
    size: int

    def said(self) -> str:
        """In words."""
        share = "" if self.rows == self.total else f" of {self.total}"
        return f"{self.kind} {self.data}: {self.rows}{share} rows, {self.size / 1e6:.1f} MB"


class FeatureStore:
    """The features in one folder; by default $ROBUSTFT_FEATURE_STORE, else `features` in the user's
    cache folder.

    Nothing is removed but by `clear`: an entry takes 4 bytes a number, 2 kB a row of width 512.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = cache.features() if root is None else Path(root)

    def rows(
        self,
        kind: str,
        about: Mapping[str, Any],
        count: int,
        compute: Compute,
        *,
        data: str,
    ) -> Rows:
        """The `count` rows of `kind` that `about` (JSON) describes; what is missing is computed.

        data: what to call the data set they are of.
        Errors: InputError where the disk has no room; OSError where it cannot be written.
        """
        text = json.dumps([kind, about, count], sort_keys=True)
        folder = self.root / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:20]}"
        paths = [folder / f"{number:05d}.safetensors" for number in range(-(-count // SHARD))]
        while True:
            missing = [number for number, path in enumerate(paths) if not path.is_file()]
            if not missing:
                found = Rows(paths, count, SHARD)
                damaged = found.check()
                if not damaged:
                    with contextlib.suppress(OSError):
                        os.utime(folder / _ENTRY)
                    return found
                for path in damaged:
                    warn(f"{path} is damaged: its features are computed anew")
                    path.unlink(missing_ok=True)
                continue
            entry = {"kind": kind, "data": data, "rows": count, "about": dict(about)}
            _begin(folder / _ENTRY, entry)
            _fill(paths, missing, count, compute, data)
            for number in missing:
                if not paths[number].is_file():
                    with locks.held(_lock(paths[number])):  # until who computes it is done, or dead
                        pass

    def entries(self) -> list[Entry]:
        """What is there, of every key."""
        found = []
        for path in sorted(self.root.glob(f"*/{_ENTRY}")):
            try:
                entry = json.loads(path.read_text(encoding="utf-8"))
                kind, data, total = str(entry["kind"]), str(entry["data"]), int(entry["rows"])
            except (OSError, ValueError, KeyError, TypeError):
                continue
            shards = list(path.parent.glob("[0-9]*.safetensors"))
            size = sum(_stat(shard, "st_size") for shard in shards)
            rows = min(total, len(shards) * SHARD)
            found.append(Entry(path.parent, kind, data, rows, total, int(size)))
        return found

    def clear(self, days: float = 0.0) -> int:
        """Remove what no run has begun with for `days` days; the bytes that were freed.

        Runs that have the files open keep them.
        """
        freed, until = 0, time.time() - days * _DAY
        for entry in self.entries():
            if _stat(entry.folder / _ENTRY, "st_mtime") <= until:
                freed += entry.size
                shutil.rmtree(entry.folder, ignore_errors=True)
        return freed


def _begin(path: Path, entry: dict[str, Any]) -> None:
    """Write what an entry is of, where that is not done yet."""
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with locks.held(_lock(path)):
        atomic.sweep(path.parent, path.name.__eq__)
        atomic.write_json(path, entry)
    locks.forget(_lock(path))


def _fill(paths: list[Path], missing: list[int], count: int, compute: Compute, data: str) -> None:
    """Compute those of the missing shards that nobody else is computing."""
    held: dict[int, contextlib.ExitStack] = {}

    def claimed() -> Iterator[range]:
        for number in missing:
            lock = contextlib.ExitStack()
            try:
                lock.enter_context(locks.held(_lock(paths[number]), wait=0))
            except locks.Taken:
                continue
            held[number] = lock
            if paths[number].is_file():  # finished since
                held.pop(number).close()
                continue
            atomic.sweep(paths[number].parent, paths[number].name.__eq__)
            stop = min((number + 1) * SHARD, count)
            for start in range(number * SHARD, stop, CHUNK):
                yield range(start, min(start + CHUNK, stop))

    shown = bar(f"features of {data}", min(len(missing) * SHARD, count), "row")
    parts: list[Part] = []
    try:
        for rows, part in compute(claimed()):
            if not parts:
                _check_room(paths[0].parent, len(missing), part)
            parts.append(part)
            number = rows.start // SHARD
            if rows.stop == min((number + 1) * SHARD, count):
                whole = {name: torch.cat([p[name] for p in parts]) for name in parts[0]}
                write_tensors(paths[number], whole, KEY, {"first": number * SHARD})
                parts = []
                # Whoever waits for it looks for the shard next, so the lock's name may go.
                locks.forget(_lock(paths[number]))
                held.pop(number).close()
            shown.update(len(rows))
    finally:
        shown.close()
        for lock in held.values():
            lock.close()


def _check_room(folder: Path, shards: int, part: Part) -> None:
    size = sum(tensor.nbytes / len(tensor) for tensor in part.values())
    need, free = shards * SHARD * size, shutil.disk_usage(folder).free
    if need > free:
        raise InputError(
            f"feature store: {need / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free in "
            f"{folder.parent}; name a folder on another disk, or off to keep features in memory"
        )


def _lock(path: Path) -> Path:
    """Of a shard. Where there are no locks several may compute it: it is moved into place whole."""
    return path.with_suffix(".lock")


def _stat(path: Path, name: str) -> float:
    try:
        return float(getattr(path.stat(), name))
    except OSError:
        return 0.0
