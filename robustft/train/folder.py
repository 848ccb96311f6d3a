"""The folder of a run: whether it is free, and who writes there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from robustft import atomic
from robustft.errors import InputError
from robustft.train import best, checkpoint, log
from robustft.train.lock import one_writer
from robustft.train.method import Method

RESULT = "model.safetensors"
SETTINGS = "train.json"
# All that is replaced there; the command line writes its configuration beforehand.
_REPLACED = {RESULT, SETTINGS, best.FILE, log.FILE, "config.yaml"}


def check_free(run_dir: Path) -> None:
    """InputError where a run is there already."""
    if (run_dir / RESULT).exists() or checkpoint.complete(run_dir):
        raise InputError(
            f'run_dir: got {run_dir}, which holds a run, expected another, or resume="latest"'
        )


@contextlib.contextmanager
def held(run_dir: Path, method: Method, *, anew: bool) -> Iterator[None]:
    """A run of `method` alone writes there inside the block; what killed ones left half written is
    gone. anew: the run begins, and does not resume. Errors: InputError where it is not free."""
    with one_writer(run_dir):
        if anew:
            check_free(run_dir)
        checkpoint.sweep(run_dir)
        atomic.sweep(run_dir, {*_REPLACED, *method.parts}.__contains__)
        yield
