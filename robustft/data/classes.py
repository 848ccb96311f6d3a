"""Class lists: what identifies a class (its folder or its index) and what it is called.

Names are for people and prompts. Two classes may share one ("missile" and "sunglasses" stand twice
among ImageNet's), so a class is never looked up by a name that is not unique.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from robustft.data.text_files import filled_lines
from robustft.errors import InputError

Lines = Sequence[str] | str | Path | None
_NUMBER = re.compile("[0-9]+")


class LabelSpace(NamedTuple):
    """The classes of a data set in label order.

    classes: what identifies each, unique: its folder, or its index as text; names: what each is
    called, not always unique.
    """

    classes: list[str]
    names: list[str]


@dataclass(frozen=True)
class ClassList:
    """A list of class names as given. folders: beside each name, or None for names alone."""

    names: list[str]
    folders: list[str] | None
    source: str


def read_class_list(source: Lines) -> ClassList | None:
    """A text file or a list: one name a line, or "folder<TAB>name"; None stays None.

    Errors: InputError, with the line, for a blank line among others, an empty name, a line of the
    other form, or a folder that stands twice.
    """
    if source is None:
        return None
    if isinstance(source, (str, Path)):
        where, lines = str(source), filled_lines(Path(source))
    else:
        where, lines = "classnames", [(i, str(line)) for i, line in enumerate(source, 1)]
    for place, (number, line) in enumerate(lines, 1):
        if number != place or not line.strip():
            raise InputError(f"{where}, line {place}: blank, expected a class name")
    if not any("\t" in line for _, line in lines):
        return ClassList([line for _, line in lines], None, where)
    folders: dict[str, str] = {}
    for number, line in lines:
        folder, _, name = (part.strip() for part in line.partition("\t"))
        if not folder or not name:
            raise InputError(f"{where}, line {number}: got {line!r}, expected 'folder<TAB>name'")
        if folder in folders:
            raise InputError(f"{where}, line {number}: the folder {folder!r} stands twice")
        folders[folder] = name
    return ClassList(list(folders.values()), list(folders), where)


def sorted_folders(names: Iterable[str]) -> list[str]:
    """Folder names in the order of their labels: numbers inside a name count as numbers.

    0, 1, ..., 9, 10 rather than 0, 1, 10, ..., 9; names without numbers, or with numbers of one
    length, are sorted as strings.
    """
    return sorted(
        names, key=lambda name: (_NUMBER.sub(lambda found: found[0].zfill(30), name), name)
    )


def label_space(
    folders: list[str], listed: ClassList | None, *, named: LabelSpace | None = None
) -> LabelSpace:
    """The label space of class folders (in order) under a list of names.

    "folder<TAB>name" lines name the folders, and others where they list more. Names alone that
    hold every folder's name once (the name that `named` gives it, if any) are the label space. With
    folders that are numbers and more names than folders, a folder's number is its label. Otherwise
    the names must be as many as the folders, and are theirs in order.
    Errors: InputError if the list does not fit, or the order of the folders is open to doubt.
    """
    own = named or LabelSpace(folders, folders)
    if listed is None:
        return own
    if listed.folders is not None:
        table = dict(zip(listed.folders, listed.names, strict=True))
        missing = [folder for folder in folders if folder not in table]
        if missing:
            raise InputError(f"{listed.source} names no class for the folder {missing[0]!r}")
        classes = sorted_folders(table) if named is not None else folders
        return LabelSpace(classes, [table[folder] for folder in classes])
    names = listed.names
    if names == own.names:
        return LabelSpace(own.classes, names)
    if set(own.names) <= set(names):
        return _found_by_name(own, listed)
    numbers = [int(f) for f in folders if _NUMBER.fullmatch(f)]
    numbered = len(numbers) == len(folders)
    if numbered and len(names) > len(folders) and max(numbers) < len(names):
        classes = [str(label) for label in range(len(names))]
        for folder, number in zip(folders, numbers, strict=True):
            classes[number] = folder
        return LabelSpace(classes, names)
    if len(names) != len(folders):
        stranger = next(name for name in own.names if name not in names)
        raise InputError(
            f"{listed.source} has {len(names)} class names for {len(folders)} class folders "
            f"({', '.join(folders[:3])}{', ...' if len(folders) > 3 else ''}), and lacks "
            f"{stranger!r}"
        )
    if not numbered and folders != sorted(folders):
        first = next(i for i, f in enumerate(sorted(folders)) if folders[i] != f)
        raise InputError(
            f"{listed.source}: the order of the class folders is in doubt ({folders[first]!r} or "
            f"{sorted(folders)[first]!r} first), expected lines 'folder<TAB>name'"
        )
    return LabelSpace(folders, names)


def _found_by_name(own: LabelSpace, listed: ClassList) -> LabelSpace:
    """`own` within the names listed, each name being unique in both."""
    counts = Counter(own.names) + Counter(listed.names)
    twice = next((name for name in own.names if counts[name] > 2), None)
    if twice is not None:
        raise InputError(
            f"{listed.source}: the class name {twice!r} stands twice, so it does not tell which "
            "class is meant; expected lines 'folder<TAB>name'"
        )
    classes = [f"#{label}" for label in range(len(listed.names))]
    for folder, name in zip(own.classes, own.names, strict=True):
        classes[listed.names.index(name)] = folder
    return LabelSpace(classes, listed.names)


def places(of: LabelSpace, within: LabelSpace) -> list[int] | None:
    """For each class of one label space its label in another; None if some are not there.

    Folders that both have decide, unless they are mere numbers under different names; then equal
    lists of names; then names that are unique in both.
    Errors: InputError where a name that stands twice leaves it open which class is meant.
    """
    by_class = {key: label for label, key in enumerate(within.classes)}
    if set(of.classes) <= set(by_class):
        labels = [by_class[key] for key in of.classes]
        agree = all(within.names[x] == name for x, name in zip(labels, of.names, strict=True))
        if agree or of.names == of.classes or not all(map(_NUMBER.fullmatch, of.classes)):
            return labels
    if of.names == within.names:
        return list(range(len(of.names)))
    if not set(of.names) <= set(within.names):
        return None
    found = []
    for key, name in zip(of.classes, of.names, strict=True):
        if of.names.count(name) + within.names.count(name) == 2:
            found.append(within.names.index(name))
        elif key in by_class and within.names[by_class[key]] == name:
            found.append(by_class[key])
        else:
            raise InputError(
                f"classes: the class name {name!r} stands twice, so it does not tell which class "
                "is meant; expected the same class folders, or the same list of names"
            )
    return found
