"""What a test set measures, told by its classes and never by its name.

Classes of the training data alone: "id" if it is the training data's own test set, else "ood".
No class of the training data: "forgetting", zero-shot on what else the model could do. Some, but
not all: in doubt, and refused until the role is stated. A set with captions in place of classes is
"ood" for a model that is trained on such data, and "forgetting" for any other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from robustft.data.captioned import CaptionedDataset
from robustft.data.classes import LabelSpace, places
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
    dataset: ImageDataset, classes: LabelSpace, *, stated: str | None, own: bool
) -> Entry:
    """`dataset` with its role.

    classes: of the training data; stated: the role asked for, or None; own: whether this is the
    training data's own test set.
    Errors: InputError for an unknown role, a role that the classes do not allow, or doubt.
    """
    name, count = dataset.name, len(dataset.classnames)
    if stated is not None and stated not in ROLES:
        raise InputError(f"role of {name}: got {stated!r}, expected one of {', '.join(ROLES)}")
    if stated == "forgetting":
        return Entry(dataset, stated, "as stated")
    if isinstance(dataset, CaptionedDataset):
        if stated is not None or own:
            why = "the training data's own" if own and stated in (None, "id") else "as stated"
            return Entry(dataset, stated or "id", why)
        return Entry(dataset, "forgetting" if classes.names else "ood", "captions, no classes")
    labels = places(dataset.label_space, classes)
    if labels is not None:
        role = stated or ("id" if own else "ood")
        mine = own and role == "id"
        why = "the training data's own" if mine else "as stated" if stated else "its classes"
        return Entry(_within(dataset, classes, labels), role, why)
    # "guinea_pig" and "Guinea pig" may be one class, which only the user knows.
    alike = _by_spelling(dataset.classnames, classes.names)
    found = [label for label in alike if label is not None]
    stranger = next((x for x in dataset.classnames if x not in set(classes.names)), "")
    if own:
        raise InputError(
            f"{name}: got the class {stranger!r} in the training data's own test set, expected the "
            "training data's classes"
        )
    if stated is not None:
        if len(found) < count:
            raise InputError(
                f"{name}: got the role {stated} and the class {stranger!r}, which the training "
                "data lack; expected their classes, or the role forgetting (--zero-shot)"
            )
        return Entry(_within(dataset, classes, found), stated, "as stated")
    if found:
        raise InputError(
            f"{name}: {len(found)} of its {count} classes are the training data's by name (not "
            f"{stranger!r}), which leaves its role in doubt; state it: --ood for the same classes, "
            "--zero-shot for others"
        )
    return Entry(dataset, "forgetting", f"{count} other classes")


def _within(dataset: ImageDataset, classes: LabelSpace, labels: list[int]) -> ImageDataset:
    """`dataset` with its labels in `classes`; labels: of each of its own classes there."""
    whole = labels == list(range(len(classes.names)))
    if whole and dataset.classnames == classes.names:
        return dataset
    index = torch.tensor(labels)
    other = dataset.relabelled(index, classes)
    if not whole:
        own = dataset.class_subset
        other.class_subset = (index if own is None else index[own]).sort().values
        if dataset.merged is not None:
            other.merged = [index[group].tolist() for group in dataset.merged]
    return other


def _by_spelling(names: list[str], classnames: list[str]) -> list[int | None]:
    """The one class of each name up to case, spaces, dashes and underscores, or None."""
    spelled: dict[str, list[int]] = {}
    for label, name in enumerate(classnames):
        spelled.setdefault(_plain(name), []).append(label)
    found = [spelled.get(_plain(name), []) for name in names]
    return [group[0] if len(group) == 1 else None for group in found]


def _plain(name: str) -> str:
    return "".join(c for c in name.casefold() if c not in " -_")
