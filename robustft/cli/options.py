"""One dataclass a verb: its flags, its keys in `--config run.yaml`, their help and their checks.

A value comes from the flag if one is given, else from the YAML file, else from the default. Keys
that no field has are errors, with the nearest known names. A list is a flag repeated, or a list in
YAML; numbers may also stand in one text with commas, and so may texts where the setting says so
(robustft.cli.commas).
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
import types
import typing
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, TypeVar

from robustft.cli import commas
from robustft.data.text_files import text_lines
from robustft.errors import InputError
from robustft.optional import require

T = TypeVar("T")
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")


def setting(
    default: Any,
    help: str,
    *,
    choices: Iterable[str] | None = None,
    commas: bool | Callable[[str], list[str]] = True,
    also: str | None = None,
    first: Callable[[Any], None] | None = None,
    positional: bool = False,
) -> Any:
    """A dataclass field with the help text of its flag; a list default is copied.

    commas: whether one text may hold several of a list's texts, or how it is split. also: a second
    spelling of the flag, for one that torchrun would take for its own. positional: no flag, but
    what stands among them. first: called with the value, if one is given, before any other setting
    is looked at, which it may add choices to.
    """
    metadata = {
        "help": help,
        "choices": choices,
        "commas": commas,
        "also": also,
        "first": first,
        "positional": positional,
    }
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def resolve(
    kind: type[T], config: Path | None, given: dict[str, Any], *, imports: bool = True
) -> T:
    """An instance of `kind` from its defaults, a YAML file and the flags that were given. What the
    file's own place says (`kind.read_from(config)`, if there is one) comes before its contents.

    imports: whether settings that import a module may; not for a file that came with a run.
    """
    values = read_yaml(config) if config is not None else {}
    place = getattr(kind, "read_from", None)
    settled = {} if config is None or place is None else place(config)
    values |= settled
    known = {f.name: f for f in offered(kind)}
    hints = typing.get_type_hints(kind)
    for key in values:
        if key not in known:
            raise InputError(f"{config}: unknown key {key!r}; {did_you_mean(key, known)}")
    given = {key: value for key, value in given.items() if value is not None}
    own = {} if settled else _defaults(kind, values | given)
    if "option" in own and "option" in values | given:  # KEY=VALUE, of which the last one counts
        own["option"] = [*own["option"], *(values | given)["option"]]
        values.pop("option", None), given.pop("option", None)
    values = own | values | given
    for key, value in values.items():
        first = known[key].metadata.get("first")
        if imports and first is not None and value is not None:
            first(value)
    for key, value in values.items():
        in_list = isinstance(value, list) and key not in given
        values[key] = _convert(
            key, value, hints[key], split=not in_list and known[key].metadata["commas"]
        )
        choices = known[key].metadata.get("choices")
        for each in value if isinstance(value, list) else [value]:
            if choices and each is not None and each not in choices:
                raise InputError(f"{flag(key)}: got {each!r}, expected one of {', '.join(choices)}")
    return kind(**values)


def _defaults(kind: Any, values: dict[str, Any]) -> dict[str, Any]:
    """What `kind.defaults_of`, if there is one, gives where neither file nor flag says anything."""
    more = getattr(kind, "defaults_of", None)
    return {} if more is None else dict(more(values))


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's mapping with its keys in Python's spelling (batch-size → batch_size)."""
    if not path.is_file():
        raise InputError(f"--config: got {path}, expected a file")
    yaml = require("yaml", extra="train")
    try:
        text = "".join(text_lines(path))
    except InputError as error:
        raise InputError(f"--config: {error}") from error
    try:
        loaded = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise InputError(f"{path}: got a {type(loaded).__name__}, expected keys with values")
    return {str(key).replace("-", "_"): value for key, value in loaded.items()}


def offered(kind: Any) -> list[dataclasses.Field[Any]]:
    """The fields that are flags and keys: none that `kind.WITHOUT` names, and those of the class
    itself before those of the one it extends."""
    left_out, own = getattr(kind, "WITHOUT", ()), list(inspect.get_annotations(kind))
    found = [field for field in dataclasses.fields(kind) if field.name not in left_out]
    return sorted(found, key=lambda x: own.index(x.name) if x.name in own else len(own))


def to_yaml(config: Any) -> str:
    """The resolved configuration as YAML that `--config` reads back to the same values."""
    found = {field.name: getattr(config, field.name) for field in offered(type(config))}
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in found.items()}
    yaml = require("yaml", extra="train")
    return str(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))


def scalar(text: str) -> Any:
    """The value of a text as YAML reads it, and numbers as everybody does: YAML 1.1 takes 1e3 and
    .5e-2 for text. Errors: InputError where it is no YAML."""
    yaml = require("yaml", extra="train")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(
            f"got {text!r}, expected a value: {' '.join(str(error).split())}"
        ) from error
    return float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value


def method_options(pairs: list[str]) -> dict[str, Any]:
    """["rank=4", ...] as a dictionary, the values read as YAML reads them."""
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise InputError(f"--option: got {pair!r}, expected KEY=VALUE")
        found[key.strip().replace("-", "_")] = scalar(value)
    return found


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def refuse_beside_run(options: Any, names: Iterable[str]) -> None:
    """Errors: InputError for one of the settings `names`, where --run is given too."""
    for name in names:
        if (value := getattr(options, name)) is not None:
            raise InputError(
                f"{flag(name)}: got {value!r} beside --run, expected one of them: a run has its own"
            )


def did_you_mean(word: str, known: Collection[str]) -> str:
    """The nearest of the known words, or all of them."""
    near = difflib.get_close_matches(word, known, n=3)
    return f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(known)}"


def is_list(hint: Any) -> bool:
    return typing.get_origin(hint) is list


def without_none(hint: Any) -> Any:
    """The type of a setting that may also be None, or the type itself."""
    if not _is_optional(hint):
        return hint
    return next(x for x in typing.get_args(hint) if x is not type(None))


def _is_optional(hint: Any) -> bool:
    return isinstance(hint, types.UnionType) and type(None) in typing.get_args(hint)


def _convert(name: str, value: Any, hint: Any, *, split: Any = False) -> Any:
    """`value` as the field's type: YAML may hand out an int for a float, or a scalar for a list."""
    if value is None:
        if _is_optional(hint):
            return None
        raise InputError(f"{flag(name)}: got nothing, expected a value")
    hint = without_none(hint)
    if is_list(hint):
        (inner,) = typing.get_args(hint)
        items = list(value) if isinstance(value, list | tuple) else [value]
        if inner is not str:
            items = [part for x in items for part in (x.split(",") if isinstance(x, str) else [x])]
        elif split:
            parts = commas.split if split is True else split
            try:
                items = [part for item in items for part in parts(str(item))]
            except InputError as error:
                raise InputError(f"{flag(name)}: {error}") from error
        return [_convert(name, item, inner) for item in items]
    wrong = InputError(f"{flag(name)}: got {value!r}, expected {_spoken(hint)}")
    if hint is bool:
        if not isinstance(value, bool):
            raise wrong
        return value
    if isinstance(value, bool | list | dict):
        raise wrong
    if hint is int and isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        value = int(value) if value.strip().lstrip("+-").isdigit() else float(value)
    if hint is int and isinstance(value, float) and not value.is_integer():
        raise wrong
    try:
        return hint(value)
    except (TypeError, ValueError) as error:
        raise wrong from error


def _spoken(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return names.get(hint, "a path" if hint is Path else str(hint))
