"""What `robustft tune` found on this machine: which backend from which size on, and tiles.

Kept beside the verdicts, under the same key: other sources, versions, driver or card, and nothing
is known; then the shipped tables count.
"""

from __future__ import annotations

import functools
import json
from typing import Any, NamedTuple

import torch

from robustft import cache
from robustft.atomic import replacing
from robustft.backends.proof import verdicts

Lines = tuple[tuple[int | None, str], ...]  # as in backends.AUTO


class Tuned(NamedTuple):
    """lines: "dive float32" → the largest size and the backend, ascending, None at the end.
    tiles: "dive float32 512" (kernel, dtype, bucket of widths) → options of the Triton kernel."""

    lines: dict[str, Lines]
    tiles: dict[str, dict[str, int]]


NOTHING = Tuned({}, {})


def name(op: str, dtype: torch.dtype) -> str:
    """Of lines."""
    return f"{op} {str(dtype).removeprefix('torch.')}"


def said(lines: Lines) -> str:
    """In words; sizes are elements of the op's first tensor."""
    return ", ".join(
        backend if largest is None else f"{backend} up to {largest:,} elements"
        for largest, backend in lines
    )


@functools.cache
def known(device: torch.device) -> Tuned:
    """What was found, read once a process; nothing where the file is damaged."""
    if not (cache.place() / "verdicts").is_dir():  # as on most machines: no key is computed
        return NOTHING
    return read(device)


def read(device: torch.device) -> Tuned:
    """As `known`, now."""
    try:
        text = verdicts.path(verdicts.TUNED, device).read_text(encoding="utf-8")
        found = json.loads(text)["tuned"]
        lines = {
            entry: tuple((None if n is None else int(n), str(backend)) for n, backend in those)
            for entry, those in found["lines"].items()
        }
        tiles = {
            entry: {str(option): int(n) for option, n in those.items()}
            for entry, those in found["tiles"].items()
        }
        return Tuned(lines, tiles)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return NOTHING


def write(device: torch.device, new: Tuned) -> None:
    """Add to what is known. Errors: OSError where that cannot be written."""
    old = read(device)
    found: dict[str, Any] = {"lines": old.lines | new.lines, "tiles": old.tiles | new.tiles}
    about = {"key": verdicts.key(verdicts.TUNED, device), "tuned": found}
    target = verdicts.path(verdicts.TUNED, device)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary:
        temporary.write_text(json.dumps(about, indent=1), encoding="utf-8")
    known.cache_clear()
