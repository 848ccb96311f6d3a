"""One dataclass a verb: its flags, its keys in `--config run.yaml`, their help and their checks.

A value comes from the flag if one is given, else from the YAML file, else from the default. Keys
that no field has are errors, with the nearest known names.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
import yaml

from robustft.errors import InputError

T = TypeVar("T")


def setting(default: Any, help: str, *, choices: tuple[str, ...] | None = None) -> Any:
    """A dataclass field with the help text of its flag; a list default is copied."""
    metadata = {"help": help, "choices": choices}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def resolve(kind: type[T], config: Path | None, given: dict[str, Any]) -> T:
    """An instance of `kind` from its defaults, a YAML file and the flags that were given."""
    values = read_yaml(config) if config is not None else {}
    known = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=3)
            hint = f"; did you mean {', '.join(near)}?" if near else f"; known: {', '.join(known)}"
            raise InputError(f"{config}: unknown key {key!r}{hint}")
    values.update({key: value for key, value in given.items() if value is not None})
    for key, value in values.items():
        values[key] = _convert(key, value, hints[key])
        choices = known[key].metadata.get("choices")
        if choices and value is not None and value not in choices:
            raise InputError(f"{flag(key)}: got {value!r}, expected one of {', '.join(choices)}")
    return kind(**values)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's mapping with its keys in Python's spelling (batch-size → batch_size)."""
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"--config: no file {path}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {error}") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise InputError(f"{path}: got a {type(loaded).__name__}, expected keys with values")
    return {str(key).replace("-", "_"): value for key, value in loaded.items()}


def to_yaml(config: Any) -> str:
    """The resolved configuration as YAML that `--config` reads back to the same values."""
    plain = {
        key: str(value) if isinstance(value, Path) else value
        for key, value in dataclasses.asdict(config).items()
    }
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def command(kind: type[T], run: Callable[[T], None]) -> Callable[..., None]:
    """A function for typer with one option a field of `kind`, which resolves them and runs."""
    hints = typing.get_type_hints(kind)

    def verb(config: Path | None = None, **given: Any) -> None:
        # typer hands out an empty tuple or list for a repeatable option that was not given
        given = {k: (None if v in ([], ()) else v) for k, v in given.items()}
        run(resolve(kind, config, given))

    parameters = [
        inspect.Parameter(
            "config",
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                Path | None, typer.Option("--config", help="YAML file of these options.")
            ],
        )
    ]
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        parameters.append(
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[
                    _optional(hints[field.name]), _typer_option(field, hints[field.name])
                ],
            )
        )
    verb.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    verb.__doc__ = run.__doc__
    verb.__name__ = run.__name__
    return verb


def _typer_option(field: dataclasses.Field[Any], hint: Any) -> Any:
    names = [flag(field.name)]
    if hint is bool:
        names = [f"{flag(field.name)}/--no-{field.name.replace('_', '-')}"]
    help = field.metadata["help"]
    if field.metadata.get("choices"):
        help += f" One of: {', '.join(field.metadata['choices'])}."
    default = field.default
    if default not in (dataclasses.MISSING, None):
        help += f" [default: {default}]"
    elif field.default_factory is not dataclasses.MISSING and field.default_factory():
        help += f" [default: {' '.join(map(str, field.default_factory()))}]"
    return typer.Option(*names, help=help, show_default=False)


def _optional(hint: Any) -> Any:
    return hint if _is_optional(hint) else hint | None


def _is_optional(hint: Any) -> bool:
    return isinstance(hint, types.UnionType) and type(None) in typing.get_args(hint)


def _convert(name: str, value: Any, hint: Any) -> Any:
    """`value` as the field's type: YAML may hand out an int for a float, or a scalar for a list."""
    if value is None:
        if _is_optional(hint):
            return None
        raise InputError(f"{flag(name)}: got nothing, expected a value")
    if _is_optional(hint):
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
    if typing.get_origin(hint) is list:
        (inner,) = typing.get_args(hint)
        items = list(value) if isinstance(value, list | tuple) else [value]
        if inner is str:
            items = [part for item in items for part in str(item).split(",")]
        return [_convert(name, item, inner) for item in items]
    wrong = InputError(f"{flag(name)}: got {value!r}, expected {_spoken(hint)}")
    if hint is bool:
        if not isinstance(value, bool):
            raise wrong
        return value
    if isinstance(value, bool | list | dict):
        raise wrong
    if hint is int and isinstance(value, float) and not value.is_integer():
        raise wrong
    try:
        return hint(value)
    except (TypeError, ValueError) as error:
        raise wrong from error


def _spoken(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return names.get(hint, "a path" if hint is Path else str(hint))
