"""A run folder has one writer at a time."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from robustft import locks
from robustft.errors import InputError, warn

NAME = "run.lock"
#: Says who holds the lock, or held it last.
WRITER = "run.writer"


@contextlib.contextmanager
def one_writer(run_dir: Path) -> Iterator[None]:
    """Hold `run_dir` for this process; the lock ends with the process, however that ends.

    Errors: InputError when another run holds it.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    writer = run_dir / WRITER
    with contextlib.ExitStack() as stack:
        try:
            locked = stack.enter_context(locks.held(run_dir / NAME, wait=0))
        except locks.Taken:
            raise InputError(
                f"run_dir: {run_dir} is being written by {_said(writer)}; wait for it, or use "
                "another"
            ) from None
        if not locked:  # some network file systems have no locks; a run there goes without
            warn(f"{run_dir} cannot be locked: let one run alone write there")
        writer.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
        yield


def _said(writer: Path) -> str:
    try:
        return writer.read_text(encoding="utf-8").strip() or "another process"
    except (OSError, ValueError):
        return "another process"
