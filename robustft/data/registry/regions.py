"""Images with label maps and masks: the layout of segmentation sets.

place/images_in/<stem>.jpg      an image, perhaps in folders below
place/labels_in/<stem>.png      its label map; labels_end: another end than .png
place/masks_in/<stem>.npz       its masks, in a form of robustft.data.masks; without masks_in the
                                regions of the label map itself
place/list                      the stems of the split, one a line; without it all images
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robustft.data.classes import read_class_list
from robustft.data.crops import Crop
from robustft.data.masks import find_masks
from robustft.data.regions import RegionDataset, Scene, find_regions, make_lookup
from robustft.data.registry.files import images_below
from robustft.data.registry.request import Request
from robustft.data.text_files import filled_lines, text_lines
from robustft.errors import InputError


def read_regions(request: Request) -> RegionDataset:
    """The regions of a split.

    classnames: a list, or a text file below the place or the root, a class a line, or a table with
    the column `Name`; synonyms: what stands between the names of one class, whose logit is the
    greatest of theirs; first: the label map's value of the first class (0); ignore: its values
    without a class ([255]); weight: which number of a mask is its weight; assembly: "sum" or
    "highest" (robustft.evaluate.segmentation); expand, fill, square: robustft.data.crops.
    Errors: InputError naming the option or the file.
    """
    options = request.options
    groups = _classes(request)
    starts = [sum(map(len, groups[:label])) for label in range(len(groups))]
    ignore = options.get("ignore", [255])
    lookup = make_lookup(
        starts,
        _whole(request, "first", options.get("first", 0)),
        [_whole(request, "ignore", v) for v in (ignore if isinstance(ignore, list) else [ignore])],
    )
    scenes = _scenes(request)
    several = any(len(group) > 1 for group in groups)
    return RegionDataset(
        scenes,
        find_regions(scenes, lookup, weight=options.get("weight")),
        lookup=lookup,
        crop=_crop(request),
        assembly=options.get("assembly", "sum"),
        classnames=[name for group in groups for name in group],
        name=request.display,
        split=request.split,
        class_subset=starts if several else None,
        merged=[
            range(start, start + len(group)) for start, group in zip(starts, groups, strict=True)
        ]
        if several
        else None,
    )


def _classes(request: Request) -> list[list[str]]:
    """The names of each class; by its first it is called."""
    given, between = (request.options.get(key) for key in ("classnames", "synonyms"))
    if isinstance(given, str):
        beside = request.place / given
        path = beside if beside.is_file() else request.root / given
        given = _names_column(path) or path
    listed = read_class_list(given)
    if listed is None:
        raise InputError(f"{request.spec}: classnames: got none, expected a list or a text file")
    groups = [
        [name.strip() for name in (line.split(between) if between else [line])]
        for line in listed.names
    ]
    for line, names in zip(listed.names, groups, strict=True):
        if not all(names):
            raise InputError(f"{request.spec}: classnames: got {line!r}, expected names in it")
    return groups


def _names_column(path: Path) -> list[str] | None:
    """The column `Name` of a table with tabs, as ADE20K's objectInfo150.txt is; None of another."""
    rows = csv.DictReader(text_lines(path), delimiter="\t")
    return [str(row["Name"]) for row in rows] if "Name" in (rows.fieldnames or ()) else None


def _scenes(request: Request) -> list[Scene]:
    """Each image of the split with its label map and its masks."""
    options, place = request.options, request.place
    own = options.get("masks_in") is None
    images, labels = (place / str(options.get(f"{x}_in", x)) for x in ("images", "labels"))
    masks = labels if own else place / str(options["masks_in"])
    for folder in (images, labels, masks):
        if not folder.is_dir():
            raise InputError(
                f"{request.spec}: no folder {folder}, expected {_expected(folder, masks)}"
            )
    pictures = {
        path.relative_to(images).with_suffix("").as_posix(): path for path in images_below(images)
    }
    stems: Sequence[str] = list(pictures)
    if options.get("list") is not None:
        stems = [line.split()[0] for _, line in filled_lines(place / str(options["list"]))]
    scenes, missing = [], []
    for stem in stems:
        picture, truth = pictures.get(stem), labels / f"{stem}{options.get('labels_end', '.png')}"
        held = truth if own else find_masks(masks, stem)
        if picture is not None and held is not None and truth.is_file():
            scenes.append(Scene(picture, truth, held))
        else:
            missing.append(
                images / stem if picture is None else masks / stem if held is None else truth
            )
    if missing and not request.partial:
        raise InputError(
            f"{request.spec}: {len(missing):,} of {len(stems):,} images lack a file, the first is "
            f"{missing[0]}; is a folder half copied?"
        )
    return scenes


def _expected(folder: Path, masks: Path) -> str:
    if folder != masks:
        return "images and label maps"
    return (
        "masks of each image, as <stem>.npz, <stem>.json or a folder <stem> of pictures (sets "
        "called -oracle take the ground truth's own regions)"
    )


def _crop(request: Request) -> Crop:
    given = {
        key: request.options[key] for key in ("expand", "fill", "square") if key in request.options
    }
    try:
        if "fill" in given:
            given["fill"] = tuple(given["fill"])
        return Crop(**given)
    except (InputError, TypeError) as error:
        raise InputError(f"{request.spec}: {error}") from error


def _whole(request: Request, key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{request.spec}: {key}: got {value!r}, expected a whole number")
    return value
