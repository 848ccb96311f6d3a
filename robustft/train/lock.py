"""A run folder has one writer at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from robustft.errors import InputError, warn

NAME = "run.lock"


@contextlib.contextmanager
def one_writer(run_dir: Path) -> Iterator[None]:
    """Hold `run_dir` for this process; the lock ends with the process, however that ends.

    Errors: InputError when another run holds it.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with open(run_dir / NAME, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                file.seek(0)
                who = file.read().strip() or "another process"
                raise InputError(
                    f"run_dir: {run_dir} is being written by {who}; wait for it, or use another"
                ) from None
            # Some network file systems have no locks; a run there goes without.
            warn(f"{run_dir} cannot be locked ({error.strerror}): let one run alone write there")
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
