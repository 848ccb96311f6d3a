"""Files and folders, listed quickly and always in the same order."""

from __future__ import annotations

import os
from pathlib import Path

from robustft.data.folders import is_hidden
from robustft.data.pictures import IMAGE_SUFFIXES


def class_folders(place: Path) -> list[str]:
    """The names of the folders in `place` that are not hidden, sorted."""
    with os.scandir(place) as entries:
        return sorted(e.name for e in entries if not is_hidden(e.name) and e.is_dir())


def images_below(folder: Path) -> list[Path]:
    """Image files at any depth below a folder, sorted; hidden ones and systems' own left out.

    One listing a folder and no look at single files: ImageNet has 1.3 million.
    """
    found: list[Path] = []
    folders: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:
                found.append(folder / entry.name)
            elif entry.is_dir():
                folders.append(entry.name)
    for name in folders:
        found += images_below(folder / name)
    return sorted(found)
