"""Checkpoints that appear whole or not at all, and that only their own run can resume from."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from robustft import atomic
from robustft.errors import InputError, warn
from robustft.train import state
from robustft.train.average import Average
from robustft.train.fingerprint import differences

_NAME = re.compile(r"step-(\d{8})")
_FORMAT = 2
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


def path_of(run_dir: Path, step: int) -> Path:
    """The checkpoint of `step`."""
    return folder(run_dir) / f"step-{step:08d}"


def sweep(run_dir: Path) -> None:
    """Remove the checkpoints that killed runs left half written; only for the one writer."""
    atomic.sweep(folder(run_dir), lambda name: _NAME.fullmatch(name) is not None)


def save(
    run_dir: Path,
    step: int,
    meta: dict[str, Any],
    module: nn.Module,
    optimizer: Any,
    averaged: Average | None = None,
    *,
    keep: int,
) -> Path:
    """Write checkpoints/step-XXXXXXXX and remove all but the newest `keep`.

    `meta` is plain JSON. Errors: OSError when it cannot be written (a full disk); earlier
    checkpoints are untouched, as the oldest are removed only after the new one is in place.
    """
    path = path_of(run_dir, step)
    with atomic.replacing_folder(path) as temporary:
        try:
            state.write(temporary, module, optimizer, averaged)
        except OSError:
            raise
        except Exception as error:
            # torch and safetensors report a failed write as errors of their own.
            raise OSError(f"cannot write checkpoint {path}: {error}") from error
        names = state.FILES if averaged is None else (*state.FILES, state.AVERAGE)
        sums = {name: _sha256(temporary / name) for name in names}
        record = {"format": _FORMAT, **meta, "step": step, "files": sums}
        atomic.write_json(temporary / _META, record | {"sha256": _seal(record)})
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
            raise InputError('resume: got "latest" without a run folder, expected both')
        found = complete(run_dir)
        if not found:
            warn(f"no complete checkpoint in {folder(run_dir)}: starting anew")
        return found[-1] if found else None
    path = Path(resume)
    if not (path / _META).is_file():
        raise InputError(f"resume: got {path}, expected a checkpoint folder, with a {_META}")
    return path


def read(path: Path, fingerprint: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint's own record, if it is undamaged and of the run `fingerprint` describes.

    Errors: InputError that names the damaged file, or the settings in which the two runs differ.
    """
    try:
        meta = json.loads((path / _META).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path / _META} is not readable: {error}") from error
    if not isinstance(meta, dict) or meta.get("format") != _FORMAT:
        raise InputError(f"{path} is not a checkpoint of format {_FORMAT}")
    if meta.pop("sha256", None) != _seal(meta) or not _well_formed(meta):
        raise InputError(f"{path / _META} is damaged: its checksum is not that of its contents")
    wrong = differences(meta["fingerprint"], fingerprint)
    if wrong:
        raise InputError(f"{path} belongs to another run: {'; '.join(wrong)}")
    for name in meta["files"]:
        file = path / name
        if not file.is_file() or _sha256(file) != meta["files"][name]:
            raise InputError(
                f"{file} is {'damaged' if file.exists() else 'missing'}: resume from another "
                f"checkpoint in {path.parent}, or start anew"
            )
    return meta


def _well_formed(meta: dict[str, Any]) -> bool:
    sums, counts = meta.get("files"), (meta.get("step"), meta.get("stage"))
    return (
        all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in counts)
        and isinstance(meta.get("fingerprint"), dict)
        and isinstance(sums, dict)
        and set(state.FILES) <= set(sums) <= {*state.FILES, state.AVERAGE}
    )


def _sha256(path: Path) -> str:
    total = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()


def _seal(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
