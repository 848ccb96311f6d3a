"""Locks between processes, on any system: each is held by a file's name, and the end of a process,
whatever ends it, frees what it held."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import filelock

#: Another process has the lock.
Taken = filelock.Timeout


@contextlib.contextmanager
def held(path: Path, *, wait: float = -1) -> Iterator[bool]:
    """Hold the lock file `path`; yields False on a file system without locks, as some network ones
    are.

    wait: seconds, -1 for as long as it takes. Errors: Taken where another has it after that.
    """
    lock = filelock.FileLock(path, timeout=wait)
    try:
        lock.acquire()
    except Taken:
        raise
    except (OSError, NotImplementedError):
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def forget(path: Path) -> None:
    """Remove a lock file that nobody will ask for again; Windows lets none go that is open."""
    with contextlib.suppress(OSError):
        path.unlink()
