"""Checkpoints that appear whole or not at all, and that only their own run can resume from."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

from robustft.errors import InputError
from robustft.files import replacing_folder, write_json
from robustft.train.fingerprint import differences

_log = logging.getLogger(__name__)
_NAME = re.compile(r"step-(\d{8})")
_FORMAT = 1
_META = "trainer.json"


def folder(run_dir: Path) -> Path:
    """Where a run keeps its checkpoints."""
    return run_dir / "checkpoints"


def complete(run_dir: Path) -> list[Path]:
    """The run's complete checkpoints, oldest first."""
    where = folder(run_dir)
    if not where.is_dir():
        return []
    found = [p for p in where.iterdir() if _NAME.fullmatch(p.name) and (p / _META).is_file()]
    return sorted(found)


def save(accelerator: Any, run_dir: Path, step: int, meta: dict[str, Any], *, keep: int) -> Path:
    """Write checkpoints/step-XXXXXXXX and remove all but the newest `keep`.

    Errors: OSError when it cannot be written (a full disk); earlier checkpoints are untouched, as
    the oldest are removed only after the new one is in place.
    """
    path = folder(run_dir) / f"step-{step:08d}"
    with replacing_folder(path) as temporary:
        try:
            accelerator.save_state(str(temporary))
        except OSError:
            raise
        except Exception as error:
            # torch and safetensors report a failed write as errors of their own.
            raise OSError(f"cannot write checkpoint {path}: {error}") from error
        write_json(temporary / _META, {"format": _FORMAT, **meta})
    for old in complete(run_dir)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def find(run_dir: Path | None, resume: str | Path | None) -> Path | None:
    """The checkpoint that `resume` means: None, "latest", or a folder.

    "latest" of a run without any is None: the run starts from the beginning.
    """
    if resume is None:
        return None
    if str(resume) == "latest":
        if run_dir is None:
            raise InputError('resume="latest" needs a run folder, got none')
        found = complete(run_dir)
        if not found:
            _log.warning("no complete checkpoint in %s: starting anew", folder(run_dir))
        return found[-1] if found else None
    path = Path(resume)
    if not (path / _META).is_file():
        raise InputError(f"resume: {path} is not a checkpoint folder (it has no {_META})")
    return path


def read(path: Path, fingerprint: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint's own record, if it belongs to the run that `fingerprint` describes.

    Errors: InputError that names the settings in which the two differ.
    """
    try:
        meta = json.loads((path / _META).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path / _META} is not readable: {error}") from error
    if not isinstance(meta, dict) or meta.get("format") != _FORMAT:
        raise InputError(f"{path} is not a checkpoint of format {_FORMAT}")
    wrong = differences(meta["fingerprint"], fingerprint)
    if wrong:
        raise InputError(f"{path} belongs to another run: {'; '.join(wrong)}")
    return meta


def load(accelerator: Any, path: Path) -> None:
    """Put the checkpoint's weights, optimiser, schedule and scaler into what was prepared."""
    try:
        accelerator.load_state(str(path))
    except OSError:
        raise
    except Exception as error:
        raise InputError(f"checkpoint {path} cannot be loaded: {error}") from error
