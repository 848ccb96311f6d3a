"""ImageNet and its shifts: class folders called by wnid or by label, and ObjectNet's mapping.

All carry ImageNet's 1,000 classes as label space, in the order of their wnids (timm's lists) and
under open_clip's names, which are in the same order; a set with some of them says so by
`class_subset`.
"""

from __future__ import annotations

import importlib.resources
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from robustft.data.classes import LabelSpace
from robustft.data.datasets import ImageDataset
from robustft.data.images import FileImages
from robustft.data.registry.files import class_folders, labelled_images
from robustft.data.registry.request import Request
from robustft.errors import InputError
from robustft.optional import require

_VALIDATION = re.compile(r"ILSVRC2012_val_\d{8}\.JPEG")
_MAPPINGS = (
    "folder_to_objectnet_label.json",
    "objectnet_to_imagenet_1k.json",
    "pytorch_to_imagenet_2012_id.json",
    "imagenet_to_label_2012_v2",
)


@cache
def wnids(subset: str = "imagenet") -> list[str]:
    """The wnids of ImageNet, or of "imagenet_r" or "imagenet_a", sorted: timm's list."""
    require("timm", extra="openclip")
    listed = importlib.resources.files("timm.data") / "_info" / f"{subset}_synsets.txt"
    return sorted(listed.read_text(encoding="utf-8").split())


@cache
def imagenet_classes() -> LabelSpace:
    """ImageNet's classes: wnids, and open_clip's names."""
    names = require("open_clip", extra="openclip").IMAGENET_CLASSNAMES
    return LabelSpace(wnids(), list(names))


def read_imagenet(request: Request) -> ImageDataset:
    """Class folders. numbered: they are called by label (V2) and not by wnid; subset: the list of
    the classes that the set has (R, A)."""
    space, options = imagenet_classes(), request.options
    label_of = {wnid: label for label, wnid in enumerate(space.classes)}
    folders = wnid_folders(request, request.place, numbered=bool(options.get("numbered")))
    paths, labels, occurring = labelled_images(request.place, folders)
    if "subset" in options:
        known = [label_of[wnid] for wnid in wnids(str(options["subset"]))]
        outside = sorted(set(occurring) - set(known))
        if outside:
            raise InputError(
                f"{request.spec}: got the folder {request.place / space.classes[outside[0]]}, "
                f"expected the {len(known)} classes of {request.display} alone"
            )
    return _dataset(request, space, FileImages(paths), labels, class_subset=occurring)


def wnid_folders(request: Request, place: Path, *, numbered: bool = False) -> dict[str, int]:
    """The class folders in `place` with their labels; numbered: they are called by these.

    Errors: InputError where there are none, or others.
    """
    classes = imagenet_classes().classes
    label_of = {str(i) if numbered else wnid: i for i, wnid in enumerate(classes)}
    folders = class_folders(place)
    if not folders:
        raise InputError(f"{request.spec}: {_without_folders(place)}")
    strangers = [name for name in folders if name not in label_of]
    if strangers:
        expected = "its labels, 0 to 999" if numbered else "wnids such as n01440764"
        raise InputError(
            f"{request.spec}: got the folder {place / strangers[0]} "
            f"({len(strangers)} of {len(folders)} are such), expected class folders called by "
            f"{expected}"
        )
    return {name: label_of[name] for name in folders}


def read_objectnet(request: Request) -> ImageDataset:
    """ObjectNet's classes that ImageNet has, each of which may be several of ImageNet's: those are
    `merged`. border: pixels that are cut off each image's edges."""
    space = imagenet_classes()
    groups = objectnet_groups(request.place.parent / "mappings")
    there = {name: groups[name][0] for name in class_folders(request.place) if name in groups}
    paths, labels, occurring = labelled_images(request.place, there)
    images = FileImages(paths, border=int(request.options.get("border", 0)))
    merged = [group for group in groups.values() if group[0] in set(occurring)]
    return _dataset(request, space, images, labels, class_subset=occurring, merged=merged)


def objectnet_groups(mappings: Path) -> dict[str, list[int]]:
    """For each folder of ObjectNet that ImageNet has classes of, their labels there, from the
    four files of its mappings/. Errors: InputError for one that is missing or does not fit."""
    missing = [name for name in _MAPPINGS if not (mappings / name).is_file()]
    if missing:
        raise InputError(
            f"objectnet: no {', '.join(missing)} in {mappings}, expected the mappings/ folder of "
            "the download beside images/"
        )
    folder_label, label_names, label_id = (_json(mappings / name) for name in _MAPPINGS[:3])
    lines = (mappings / _MAPPINGS[3]).read_text(encoding="utf-8").splitlines()
    # A line's number is the class's id in the 2012 challenge; the JSON file gives it by label.
    label_of_id = {int(number): int(label) for label, number in label_id.items()}
    try:
        label_of = {line.strip(): label_of_id[i] for i, line in enumerate(lines) if line.strip()}
        return {
            folder: [label_of[name.strip()] for name in label_names[label].split("; ")]
            for folder, label in sorted(folder_label.items())
            if label in label_names
        }
    except KeyError as error:
        raise InputError(
            f"objectnet: the files of {mappings} do not fit together, nothing is called {error}"
        ) from error


def _dataset(
    request: Request,
    space: LabelSpace,
    images: FileImages,
    labels: list[int],
    *,
    class_subset: list[int],
    **more: Any,
) -> ImageDataset:
    return ImageDataset(
        images,
        labels,
        classnames=space.names,
        classes=space.classes,
        name=request.display,
        split=request.split,
        class_subset=None if len(class_subset) == len(space.classes) else class_subset,
        **more,
    )


def _without_folders(place: Path) -> str:
    """Why a folder without class folders is none of ImageNet's, in words."""
    flat = sum(_VALIDATION.fullmatch(entry.name) is not None for entry in place.iterdir())
    if not flat:
        archives = [entry.name for entry in sorted(place.iterdir()) if entry.suffix == ".tar"]
        packed = f" ({len(archives)} archives such as {archives[0]} to unpack)" if archives else ""
        return f"{place} has no class folders{packed}, expected {place}/<wnid>/<image>"
    return (
        f"{place} holds {flat} images side by side, as ILSVRC2012_img_val.tar unpacks, expected "
        f"{place}/<wnid>/<image>; to sort them, put that archive and ILSVRC2012_devkit_t12.tar.gz "
        f"into a folder and call torchvision.datasets.ImageNet(folder, 'val')"
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: got a {type(found).__name__}, expected an object")
    return found
