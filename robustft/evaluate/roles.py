"""What a test set measures, told by its classes and never by its name.

Classes of the training data alone: "id" if it is the training data's own test set, else "ood".
No class of the training data: "forgetting", zero-shot on what else the model could do. Some, but
not all: in doubt, and refused until the role is stated.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch

from robustft.data.datasets import ImageDataset
from robustft.errors import InputError

ROLES = ("id", "ood", "forgetting")


@dataclass(frozen=True)
class Entry:
    """One data set of a suite: its labels in the head's classes, its role, and how it got it."""

    dataset: ImageDataset
    role: str
    why: str


def make_entry(
    dataset: ImageDataset, classnames: list[str], *, stated: str | None, own: bool
) -> Entry:
    """`dataset` with its role.

    classnames: of the training data; stated: the role asked for, or None; own: whether this is the
    training data's own test set.
    Errors: InputError for an unknown role, a role that the classes do not allow, or doubt.
    """
    name, count = dataset.name, len(dataset.classnames)
    if stated is not None and stated not in ROLES:
        raise InputError(f"role of {name}: got {stated!r}, expected one of {', '.join(ROLES)}")
    if stated == "forgetting":
        return Entry(dataset, stated, "as stated")
    strangers = [x for x in dataset.classnames if x not in set(classnames)]
    if not strangers:
        if stated is None:
            stated, why = ("id", "the training data's own") if own else ("ood", "its classes")
        else:
            why = "as stated"
        return Entry(_within(dataset, classnames, dataset.classnames), stated, why)
    # "guinea_pig" and "Guinea pig" may be one class, which only the user knows.
    alike = _by_spelling(dataset.classnames, classnames)
    if stated is not None:
        found = [x for x in alike if x is not None]
        if len(found) < count:
            raise InputError(
                f"{name}: got the role {stated} and the class {strangers[0]!r}, which the training "
                "data lack; expected their classes, or the role forgetting (--zero-shot)"
            )
        return Entry(_within(dataset, classnames, found), stated, "as stated")
    shared = sum(x is not None for x in alike)
    if own:
        raise InputError(
            f"{name}: got the class {strangers[0]!r} in the training data's own test set, "
            "expected the training data's classes"
        )
    if shared:
        raise InputError(
            f"{name}: {shared} of its {count} classes are the training data's by name (not "
            f"{strangers[0]!r}), which leaves its role in doubt; state it: --ood for the same "
            "classes, --zero-shot for others"
        )
    return Entry(dataset, "forgetting", f"{count} other classes")


def _within(dataset: ImageDataset, classnames: list[str], names: list[str]) -> ImageDataset:
    """`dataset` with its labels as indices into `classnames`; names: of its own classes there."""
    if dataset.classnames == classnames:
        return dataset
    index = torch.tensor([classnames.index(name) for name in names])
    other = copy.copy(dataset)
    other.labels = index[dataset.labels]
    other.classnames = classnames
    other.class_subset = index.sort().values
    return other


def _by_spelling(names: list[str], classnames: list[str]) -> list[str | None]:
    """The one class of each name up to case, spaces, dashes and underscores, or None."""
    spelled: dict[str, list[str]] = {}
    for name in classnames:
        spelled.setdefault(_plain(name), []).append(name)
    found = [spelled.get(_plain(name), []) for name in names]
    return [group[0] if len(group) == 1 else None for group in found]


def _plain(name: str) -> str:
    return "".join(c for c in name.casefold() if c not in " -_")
