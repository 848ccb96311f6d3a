"""How a command ends: what it wrote, and what to do next, as it can be typed."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from robustft.readable import readable


def end(*written: Path | str | None, next: Sequence[str] = ()) -> None:
    """Print each path that is not None as written, and the commands that come next."""
    for path in written:
        if path is not None:
            print(f"written: {readable(str(path))}")
    if next:
        print("next:", *next, sep="\n  ")


def command(verb: str, *words: object) -> str:
    """A command of robustft, for a shell."""
    return f"robustft {verb} {shlex.join(map(str, words))}".rstrip()
