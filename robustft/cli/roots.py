"""Names of registered data sets on the command line: `imagenet` becomes `imagenet@ROOT`.

--data NAME says that --data-location is a folder below which registered sets lie, and every set
argument may then be such a name. What a verb goes on with are names with their root alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from robustft.cli import named
from robustft.cli.options import flag, setting
from robustft.data.registry.known import REGISTRY
from robustft.data.registry.spec import Spec, parse, with_root
from robustft.data.registry.suites import SUITES, suite
from robustft.errors import InputError
from robustft.modules import import_user_module

T = TypeVar("T", bound=Any)
DATA_HELP = "A registered data set below --data-location, such as imagenet (robustft data ls)."
SUITE_HELP = (
    f"Registered test sets with their roles, below --data-location: {', '.join(SUITES)}; may be "
    "repeated."
)
_BY_ROLE = {"id": "id", "ood": "ood", "forgetting": "zero_shot"}
_SETS = ("eval_datasets", *_BY_ROLE.values())


def data_module() -> Any:
    """The setting of every verb that takes data sets."""
    return setting(
        None,
        "A YAML file of data sets (docs/data.md), or a Python file or module that registers some.",
        first=lambda spec: bring(str(spec)),
    )


def bring(spec: str) -> None:
    """Make known the data sets of a YAML file, a Python file or a module."""
    if spec.endswith((".yaml", ".yml")):
        REGISTRY.register_file(spec)
    else:
        import_user_module(spec, "--data-module")


def training_data(data: str | None, location: str | None) -> str | None:
    """What --data and --data-location name together: `imagenet@/data`, or the location itself."""
    if data is None:
        known = None if location is None else with_root(location)
        return location if known is None else str(_absolute(known))
    spec = parse(data)
    if spec is None:
        raise InputError(f"--data: got {data!r}, expected one of {', '.join(REGISTRY)}")
    if spec.root is None and (location is None or not Path(location).is_dir()):
        raise InputError(
            f"--data-location: got {location!r}, expected the folder below which {data} lies"
        )
    return str(_absolute(spec.at(str(location))))


def root_of(location: str | None) -> str | None:
    """The root of the registered set that a data location is, or None."""
    spec = None if location is None else with_root(location)
    return None if spec is None else spec.root


def is_root(location: str | None) -> bool:
    """Whether a location is a folder that is no data set itself."""
    if location is None or not Path(location).is_dir():
        return False
    return not any((Path(location) / split).is_dir() for split in ("train", "test"))


def names_registered(options: Any) -> bool:
    """Whether a set argument is a registered name without a root, and not a path."""
    texts = [text for key in _SETS for text in getattr(options, key)]
    specs = [named.parse(text).spec for text in texts]
    return any(
        (spec := parse(name)) is not None and spec.root is None and not Path(name).exists()
        for name in specs
    )


def rooted(options: T, root: str | None) -> T:
    """The options of a verb with its suites spelled out and a root in every registered name.

    Errors: InputError for an unknown suite, or a registered name where no root is known.
    """
    given = {key: list(getattr(options, key)) for key in _SETS if hasattr(options, key)}
    suites = getattr(options, "suite", [])
    for name in suites:
        if root is None:
            raise InputError(f"--suite: got {name!r}, expected --data-location ROOT with it")
        found = suite(name)
        for role, key in _BY_ROLE.items():
            given[key] += [str(parse(one)) for one in found.get(role, ())]
    values: dict[str, Any] = {
        key: [_rooted(text, root, key) for text in texts] for key, texts in given.items()
    }
    reference = getattr(options, "reference", None)
    if reference is not None:
        values["reference"] = _rooted(reference, root, "reference")
    if suites:
        values["suite"] = []
    changed = dataclasses.replace(options, **values)
    if suites and not getattr(options, "dry_run", False):  # which lists what is missing
        _check_there([text for key in given for text in values[key]])
    return changed


def _rooted(text: str, root: str | None, key: str) -> str:
    """A set argument `[NAME=]SPEC[:ROLE]` with the root in its spec, if that is registered."""
    one = named.parse(text)
    spec = parse(one.spec)
    if spec is None:
        return text
    if spec.root is None:
        if root is None:
            if Path(one.spec).exists():
                return text
            raise InputError(
                f"{flag(key)}: got {one.spec!r} without a root folder, expected {one.spec}@ROOT, "
                "or --data with --data-location ROOT"
            )
        spec = spec.at(root)
    return one.written(str(_absolute(spec)))


def _absolute(spec: Spec) -> Spec:
    return dataclasses.replace(spec, root=str(Path(str(spec.root)).expanduser().absolute()))


def _check_there(texts: Sequence[str]) -> None:
    """InputError that names every registered test set that is not there, and those that are."""
    from robustft.data.registry.load import find

    specs = [spec for text in texts if (spec := with_root(named.parse(text).spec)) is not None]
    missing = [spec for spec in specs if find(spec, "test") is None]
    if missing:
        there = [spec.name for spec in specs if spec not in missing]
        rest = f"; {', '.join(there)} can be named by --id, --ood and --zero-shot" if there else ""
        raise InputError(
            f"--suite: not found below {missing[0].root}: {', '.join(x.name for x in missing)} "
            f"(robustft doctor --data-location {missing[0].root} says where they are looked for)"
            f"{rest}"
        )
