"""What flags name as test sets: `[NAME=][CORRUPTION:]DATASET[:ROLE]`, a path, a built-in or a
registered set."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from robustft.data.corruptions.names import ALL, Corruption, corruption_of
from robustft.errors import InputError

if TYPE_CHECKING:
    from robustft.data.registry.spec import Spec

_ROLES = {"id": "id", "ood": "ood", "forgetting": "forgetting", "zero-shot": "forgetting"}


@dataclass(frozen=True)
class Asked:
    """A data set as a flag names it; name and role are None where they are not stated."""

    spec: str
    name: str | None = None
    role: str | None = None
    first: int | None = None  # so many samples of it, None for all
    corruption: Corruption | None = None

    def written(self, spec: str) -> str:
        """As a flag would name it, with `spec` as the data set."""
        head = "" if self.name is None else f"{self.name}="
        return head + self._under(spec) + ("" if self.role is None else f":{self.role}")

    @property
    def where(self) -> str:
        """The data set, absolute."""
        return self._under(where(self.spec))

    def _under(self, spec: str) -> str:
        return spec if self.corruption is None else f"{self.corruption}:{spec}"


def parse(text: str, role: str | None = None) -> Asked:
    """`[NAME=][CORRUPTION:]DATASET[:ROLE]`. What exists as it stands is a path, whatever it has in
    its name.

    Errors: InputError for a role that contradicts `role`, the one that the flag states.
    """
    name, spec = None, text
    if not exists(spec):
        head, colon, tail = spec.rpartition(":")
        if colon and head and tail in _ROLES:
            if role not in (None, _ROLES[tail]):
                raise InputError(
                    f"datasets: got {text!r} under the flag of the role {role}, expected one role"
                )
            spec, role = head, _ROLES[tail]
    if not exists(spec):
        head, equals, tail = spec.partition("=")
        if equals and head and tail:
            name, spec = head, tail
    corruption, bare = corruption_of(spec) if not exists(spec) else (None, spec)
    return Asked(bare, name, role, corruption=corruption)


def asked_for(
    eval_datasets: Sequence[str], id: Sequence[str], ood: Sequence[str], zero_shot: Sequence[str]
) -> list[Asked]:
    """The sets of `--eval-datasets`, `--id`, `--ood` and `--zero-shot`, each once.

    Errors: InputError for a set of two roles.
    """
    flags = ((None, eval_datasets), ("id", id), ("ood", ood), ("forgetting", zero_shot))
    found: dict[tuple[str, str | None], Asked] = {}
    for role, texts in flags:
        for text in texts:
            for one in _each(parse(text, role)):
                key = one.where, one.name
                before = found.get(key)
                if before is not None and None not in (before.role, one.role) and before != one:
                    raise InputError(
                        f"datasets: got {one.spec!r} as {before.role} and as {one.role}, "
                        "expected one role"
                    )
                if before is None or one.role is not None:
                    found[key] = one
    return list(found.values())


def _each(one: Asked) -> list[Asked]:
    """Itself, or one set for every corruption that it stands for."""
    if one.corruption is None or one.corruption.name != ALL:
        return [one]
    return [
        dataclasses.replace(
            one, corruption=by, name=None if one.name is None else f"{one.name} ({by})"
        )
        for by in one.corruption.each
    ]


def by_role(one: Asked) -> int:
    """The place among test sets: ID first, what is forgotten last."""
    return {"id": 0, "forgetting": 2}.get(one.role or "", 1)


def registered(spec: str) -> Spec | None:
    """The registered set, with its root, that a data set's name means; None for anything else."""
    from robustft.data.registry.spec import with_root

    return with_root(spec)


def built_in(spec: str) -> bool:
    from robustft.data import built_in_names

    return spec in built_in_names()


def is_file(spec: str) -> bool:
    """Whether a name is a path: a folder's or a table's, there or not."""
    return not built_in(spec) and registered(spec) is None


def exists(spec: str) -> bool:
    known = registered(spec)
    if known is not None:
        return Path(str(known.root)).is_dir()
    return built_in(spec) or Path(spec).exists()


def is_known(spec: str) -> bool:
    """Whether it exists, or is the name of a registered set, whose root may be said elsewhere."""
    from robustft.data.registry.spec import parse as as_registered

    return exists(spec) or as_registered(spec) is not None


def where(spec: str) -> str:
    return str(Path(spec).resolve()) if is_file(spec) else spec
