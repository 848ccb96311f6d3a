"""`robustft completion --shell bash`: what makes a shell complete verbs, options and values."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustft.cli.options import offered, setting
from robustft.cli.parser import add_options
from robustft.errors import InputError
from robustft.optional import require

SHELLS = ("bash", "zsh", "fish", "tcsh")


@dataclass(frozen=True)
class CompletionOptions:
    """Print a shell's completion script, which knows the options of the version that wrote it.

    bash, in ~/.bashrc: eval "$(robustft completion --shell bash)". fish: robustft completion
    --shell fish > ~/.config/fish/completions/robustft.fish. zsh: into a file _robustft in $fpath.
    """

    shell: str | None = setting(
        None, "The shell the script is for [default: the one of $SHELL].", choices=SHELLS
    )


def completion(options: CompletionOptions) -> None:
    """Carry out `robustft completion`."""
    shell = options.shell or Path(os.environ.get("SHELL", "")).name
    if shell not in SHELLS:
        raise InputError(f"--shell: got {shell!r}, expected one of {', '.join(SHELLS)}")
    shtab = require("shtab", extra="train")
    print(shtab.complete(_parser(shtab.FILE), shell=shell))


def _parser(file: dict[str, str]) -> argparse.ArgumentParser:
    """The whole command line, which is never parsed with this. file: shtab's mark of an option
    whose value is a path."""
    from robustft.cli.app import VERBS, found

    parser = argparse.ArgumentParser(prog="robustft")
    parser.add_argument("--version", action="store_true", help="Print the version.")
    verbs = parser.add_subparsers()
    under: dict[str, Any] = {}
    for name, verb in VERBS.items():
        first, _, second = name.partition(" ")  # "data ls"
        if second and first not in under:
            under[first] = verbs.add_parser(first, help="Registered data sets.").add_subparsers()
        kind = found(verb.options)
        holder = under[first] if second else verbs
        parts: argparse.ArgumentParser = holder.add_parser(second or first, help=verb.help)
        choices = {field.name: field.metadata["choices"] for field in offered(kind)}
        for key, action in add_options(parts, kind).items():
            # zsh takes what stands in brackets for a choice of its own.
            action.help = (action.help or "").partition(" [")[0]
            if choices.get(key):
                action.choices = list(choices[key])  # of a mapping, what is registered
            elif action.nargs is None:
                action.complete = file  # type: ignore[attr-defined]
    return parser
