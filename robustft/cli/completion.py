"""`robustft completion --shell bash`: what makes a shell complete verbs, options and values."""

from __future__ import annotations

import argparse
import importlib
import os
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustft.cli.options import offered, setting, spellings
from robustft.errors import InputError
from robustft.optional import require

SHELLS = ("bash", "zsh", "tcsh")


@dataclass(frozen=True)
class CompletionOptions:
    shell: str | None = setting(
        None, "The shell the script is for [default: the one of $SHELL].", choices=SHELLS
    )


def completion(options: CompletionOptions) -> None:
    """Print a shell's completion script. For bash, in ~/.bashrc:
    eval "$(robustft completion --shell bash)"; it knows the options of the version that wrote it.
    """
    shell = options.shell or Path(os.environ.get("SHELL", "")).name
    if shell not in SHELLS:
        raise InputError(f"--shell: got {shell!r}, expected one of {', '.join(SHELLS)}")
    shtab = require("shtab", extra="train")
    print(shtab.complete(_parser(shtab.FILE), shell=shell))


def _parser(file: dict[str, str]) -> argparse.ArgumentParser:
    """The command line as shtab reads it; nothing is ever parsed with this. file: shtab's mark of
    an option whose value is a path."""
    from robustft.cli.app import VERBS

    parser = argparse.ArgumentParser(prog="robustft")
    parser.add_argument("--version", action="store_true", help="Print the version.")
    verbs = parser.add_subparsers()
    verbs.add_parser("doctor", help="Versions, devices and backends.")
    under: dict[str, Any] = {}
    for name, verb in VERBS.items():
        first, _, second = name.partition(" ")  # "data ls"
        if second and first not in under:
            under[first] = verbs.add_parser(first, help="Registered data sets.").add_subparsers()
        kind = getattr(importlib.import_module(f"robustft.cli.{verb.module}"), verb.options)
        hints = typing.get_type_hints(kind)
        holder = under[first] if second else verbs
        parts: argparse.ArgumentParser = holder.add_parser(second or first, help=verb.help)
        config = parts.add_argument("--config", help="YAML file of these options.")
        config.complete = file  # type: ignore[attr-defined]
        for field in offered(kind):
            if field.metadata["positional"]:
                continue
            # zsh takes what stands in brackets for a choice of its own.
            help = field.metadata["help"].partition(" [")[0].replace("%", "%%")
            flags = [x for text in spellings(field, hints[field.name]) for x in text.split("/")]
            if hints[field.name] is bool:
                parts.add_argument(*flags, action="store_true", help=help)
                continue
            choices = field.metadata.get("choices")  # a list, or names of what is registered
            choices = None if choices is None else list(choices)
            one = parts.add_argument(*flags, choices=choices, help=help)
            if not choices:
                one.complete = file  # type: ignore[attr-defined]
    return parser
