"""A verb's options as argparse has them: to parse them, for --help, and for completion scripts.

Values stay texts here; robustft.cli.options makes of them what the fields are.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import typing
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from robustft.cli.options import did_you_mean, flag, is_list, offered, resolve, without_none
from robustft.errors import InputError

T = TypeVar("T")
_METAVARS = {int: "N", float: "X", Path: "PATH"}


class Parser(argparse.ArgumentParser):
    """One whose errors are InputErrors, and which takes no abbreviations: a new option would make
    an old one's ambiguous."""

    def __init__(self, **more: Any) -> None:
        super().__init__(
            add_help=False,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **more,
        )
        self.add_argument("--help", action="help", help="Print this.")

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ")
        raise InputError(message.replace("expected one argument", "got nothing, expected a value"))


def parse(name: str, kind: type[T], about: str | None, words: list[str]) -> T:
    """The options `kind` of a verb from its words. Errors: InputError; SystemExit after --help."""
    parser = Parser(prog=f"robustft {name}", description=inspect.cleandoc(about or ""))
    actions = add_options(parser, kind)
    plain = [str(one.metavar) for one in actions.values() if not one.option_strings]
    parser.usage = " ".join([parser.prog, "[OPTIONS]", *(f"[{name} ...]" for name in plain)])
    found, unknown = parser.parse_known_intermixed_args(words)
    if unknown:
        word = unknown[0].partition("=")[0]
        known = [text for action in actions.values() for text in action.option_strings]
        raise InputError(f"{name}: No such option {word!r}; {did_you_mean(word, known)}")
    given = {key: value for key, value in vars(found).items() if value not in (None, [])}
    config = given.pop("config", None)
    return resolve(kind, None if config is None else Path(config), given)


def add_options(parser: argparse.ArgumentParser, kind: Any) -> dict[str, argparse.Action]:
    """Give a parser --config and an option a field of `kind`; the actions by the fields' names."""
    hints = typing.get_type_hints(kind)
    about = "YAML file of these options."
    found = {"config": parser.add_argument("--config", metavar="PATH", help=about)}
    for field in offered(kind):
        hint = without_none(hints[field.name])
        names, more = [flag(field.name)], dict[str, Any](help=help_of(field).replace("%", "%%"))
        if field.metadata["also"]:
            names.append(field.metadata["also"])
        if field.metadata["positional"]:
            names, more = [field.name], more | {"nargs": "*", "metavar": field.name.upper()}
        elif hint is bool:
            more["action"] = argparse.BooleanOptionalAction
        else:
            (inner,) = typing.get_args(hint) or (hint,)
            more |= {"dest": field.name, "metavar": _METAVARS.get(inner, "TEXT")}
            more["action"] = "append" if is_list(hint) else "store"
        found[field.name] = parser.add_argument(*names, **more)
    return found


def help_of(field: dataclasses.Field[Any]) -> str:
    """A setting's help with its choices and its default."""
    text, default = str(field.metadata["help"]), field.default
    if field.metadata["choices"]:
        text += f" One of: {', '.join(field.metadata['choices'])}."
    if field.default_factory is not dataclasses.MISSING:
        default = " ".join(map(str, field.default_factory())) or None
    return text if default is None else f"{text} [default: {default}]"
