"""`robustft tune`: backends and tiles measured on this machine's card, for `auto` to go by."""

from __future__ import annotations

import json
import subprocess
import sys

import torch

from robustft import backends, cache, progress
from robustft.backends.card import KERNELS
from robustft.backends.proof import tuned
from robustft.backends.proof.tuned import Tuned
from robustft.cli.ending import end
from robustft.cli.tune_options import TuneOptions
from robustft.cli.verify import DTYPES
from robustft.errors import InputError


def tune(options: TuneOptions) -> None:
    """Carry out `robustft tune`."""
    for name, value, least in (("limit", options.limit, 1), ("width", options.width, 0)):
        if value < least:
            raise InputError(f"--{name}: got {value}, expected at least {least}")
    if any(count < 1 for count in options.rows):
        raise InputError(f"--rows: got {min(options.rows)}, expected at least 1")
    wanted = [
        (op, dtype)
        for op in options.op or backends.OPS
        for dtype in options.dtype or DTYPES
        # Searches are in float32 alone: other features are taken to it first.
        if _tunable(op) and (op != "nearest" or dtype == "float32")
    ]
    if not wanted:
        reasons = "; ".join(f"{b}: {backends.status(b).reason}" for b in KERNELS)
        raise InputError(f"tune: found no card's kernel that runs here ({reasons})")
    if cache.folder() != cache.place():
        raise InputError(f"tune: {cache.place()} cannot be written: nothing would be remembered")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    failed = []
    for op, dtype in progress.each(wanted, "tune", len(wanted), "op"):
        _say(f"{op} {dtype}")
        found = _asked(op, dtype, device, options)
        if isinstance(found, str):
            _say(f"  {found}")
            failed.append(f"{op} {dtype}")
            continue
        tuned.write(device, found)
        for entry, lines in found.lines.items():
            _say(f"  auto for {entry}: {tuned.said(lines)}")
    if failed:
        raise InputError(f"tune: {', '.join(failed)} could not be tuned; auto goes on as before")
    end(cache.folder(), next=["robustft doctor"])


def _say(text: str) -> None:
    with progress.aside():
        print(text, flush=True)


def _tunable(op: str) -> bool:
    return any(b in backends.IMPLEMENTATIONS[op] and backends.status(b).runs for b in KERNELS)


def _asked(op: str, dtype: str, device: torch.device, options: TuneOptions) -> Tuned | str:
    """What a process of its own found, or why it found nothing."""
    command = [
        sys.executable, "-m", "robustft.cli.one_tuning", op, dtype, str(device),
        str(options.width), str(options.thorough), *map(str, options.rows),
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=options.limit, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {options.limit} s"
    *lines, last = done.stdout.splitlines() or [""]
    for line in lines:
        _say(f"  {line}")
    try:
        return Tuned(*json.loads(last))
    except (ValueError, TypeError):
        said = done.stderr.strip().splitlines()
        return f"exit code {done.returncode}: {said[-1] if said else 'no word'}"
