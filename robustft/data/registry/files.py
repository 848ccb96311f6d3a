"""Files and folders, listed quickly and always in the same order."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from robustft.data.folders import is_hidden
from robustft.data.images import DAMAGED_SHARE
from robustft.data.pictures import IMAGE_SUFFIXES
from robustft.data.registry.request import Request
from robustft.errors import InputError


def class_folders(place: Path) -> list[str]:
    """The names of the folders in `place` that are not hidden, sorted."""
    with os.scandir(place) as entries:
        return sorted(e.name for e in entries if not is_hidden(e.name) and e.is_dir())


def labelled_images(
    root: Path, label_of: Mapping[str, int]
) -> tuple[list[Path], list[int], list[int]]:
    """Images in root/<name>, their labels, and the labels that occur; folders in the order of their
    labels."""
    paths: list[Path] = []
    labels: list[int] = []
    for name, label in sorted(label_of.items(), key=lambda item: item[1]):
        found = images_below(root / name)
        paths += found
        labels += [label] * len(found)
    return paths, labels, sorted(set(labels))


def images_below(folder: Path) -> list[Path]:
    """Image files at any depth below a folder, its own first, by name; hidden ones left out.

    One listing a folder and no look at single files: ImageNet has 1.3 million.
    """
    images: list[str] = []
    folders: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:
                images.append(entry.name)
            elif entry.is_dir():
                folders.append(entry.name)
    found = [folder / name for name in sorted(images)]
    for name in sorted(folders):
        found += images_below(folder / name)
    return found


def only_present(request: Request, paths: list[Path]) -> list[int]:
    """The places of the files in `paths` that are there.

    All of them where no more are missing than may be damaged: reading counts those. With a partial
    set the missing are left out. Errors: InputError where more are missing.
    """
    listed: dict[Path, set[str]] = {}
    for folder in {path.parent for path in paths}:  # one listing a folder, no look at single files
        try:
            listed[folder] = set(os.listdir(folder))
        except OSError:
            listed[folder] = set()
    there = [i for i, path in enumerate(paths) if path.name in listed[path.parent]]
    missing = len(paths) - len(there)
    if request.partial:
        return there
    if missing > DAMAGED_SHARE * len(paths):
        first = next(path for path in paths if path.name not in listed[path.parent])
        raise InputError(
            f"{request.spec}: {missing:,} of {len(paths):,} images are missing, the first is "
            f"{first}; is an archive half unpacked?"
        )
    return list(range(len(paths)))
