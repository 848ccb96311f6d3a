"""iWildCam and FMoW of WILDS (arXiv 2012.07421), from their tables, without its package."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from robustft.data.datasets import ImageDataset
from robustft.data.images import FileImages
from robustft.data.registry.files import only_present
from robustft.data.registry.request import Request
from robustft.data.text_files import text_lines
from robustft.errors import InputError

# FMoW's official split: images from 2016 on are OOD test, those of 2013 to 2015 OOD validation.
_VAL_FROM, _TEST_FROM = "2013-01-01", "2016-01-01"
_OTHER = "Other"  # region of countries that the mapping lacks; never the worst region


def read_iwildcam(request: Request) -> ImageDataset:
    """metadata.csv (split, y, filename, location_remapped), categories.csv (y, name) and train/.

    subset: a value of the column split. Groups are the cameras' locations.
    """
    categories = _rows(request.place / "categories.csv", "y", "name")
    names = {_whole(request.place / "categories.csv", row["y"]): row["name"] for row in categories}
    if sorted(names) != list(range(len(names))):
        raise InputError(
            f"{request.place / 'categories.csv'}: got y from {min(names, default=0)} to "
            f"{max(names, default=0)} in {len(names)} rows, expected 0 to {len(names) - 1}"
        )
    columns = ("split", "y", "filename", "location_remapped")
    rows = [
        row
        for row in _rows(request.place / "metadata.csv", *columns)
        if row["split"] == request.options["subset"]
    ]
    paths = [request.place / "train" / row["filename"] for row in rows]
    kept = only_present(request, paths)
    table = request.place / "metadata.csv"
    cameras = [_whole(table, rows[i]["location_remapped"]) for i in kept]
    places = sorted(set(cameras))
    group_of = {place: number for number, place in enumerate(places)}
    labels = [_whole(table, rows[i]["y"]) for i in kept]
    if labels and max(labels) >= len(names):
        raise InputError(
            f"{table}: got y {min(labels)} to {max(labels)}, expected of categories.csv"
        )
    return ImageDataset(
        FileImages([paths[i] for i in kept]),
        labels,
        classnames=[names[label].replace("_", " ") for label in range(len(names))],
        name=request.display,
        split=request.split,
        groups=[group_of[camera] for camera in cameras],
        group_names=[f"location {place}" for place in places],
    )


def read_fmow(request: Request) -> ImageDataset:
    """rgb_metadata.csv (split, category, country_code, timestamp), country_code_mapping.csv and
    images/rgb_img_<row>.png.

    subset: train, id_val, id_test, or val and test, which are the OOD ones. Groups are regions.
    """
    table = request.place / "rgb_metadata.csv"
    region_of = {
        row["alpha-3"]: row["region"]
        for row in _rows(request.place / "country_code_mapping.csv", "alpha-3", "region")
    }
    columns = ("split", "category", "country_code", "timestamp")
    # Rows of the split seq keep their number, which names the image, and are left out.
    rows = [
        (number, row) for number, row in enumerate(_rows(table, *columns)) if row["split"] != "seq"
    ]
    categories = sorted({row["category"] for _, row in rows})
    chosen = [(n, row) for n, row in rows if _fmow_split(row) == request.options["subset"]]
    paths = [request.place / "images" / f"rgb_img_{number}.png" for number, _ in chosen]
    kept = only_present(request, paths)
    found = [chosen[i][1] for i in kept]
    regions = [region_of.get(row["country_code"], _OTHER) or _OTHER for row in found]
    names = sorted(set(regions) - {_OTHER})
    label_of = {name: label for label, name in enumerate(categories)}
    return ImageDataset(
        FileImages([paths[i] for i in kept]),
        [label_of[row["category"]] for row in found],
        classnames=[name.replace("_", " ") for name in categories],
        classes=categories,
        name=request.display,
        split=request.split,
        groups=[-1 if region == _OTHER else names.index(region) for region in regions],
        group_names=names,
    )


def _fmow_split(row: dict[str, str]) -> str | None:
    """The official split of a row, by its own split and its date (ISO 8601 sorts as text)."""
    split, when = row["split"], row["timestamp"]
    if when < _VAL_FROM:
        return {"train": "train", "val": "id_val", "test": "id_test"}.get(split)
    if split == "val" and when < _TEST_FROM:
        return "val"
    return "test" if split == "test" and when >= _TEST_FROM else None


def _whole(path: Path, text: str) -> int:
    if not text.isdecimal():
        raise InputError(f"{path}: got {text!r}, expected a whole number")
    return int(text)


def _rows(path: Path, *needed: str) -> Iterator[dict[str, str]]:
    """The rows of a .csv file by column. InputError where a column that is needed is missing."""
    reader = csv.DictReader(text_lines(path))
    header = reader.fieldnames or []
    missing = [name for name in needed if name not in header]
    if missing:
        raise InputError(
            f"{path}: got the columns {', '.join(header) or 'none'}, expected {missing[0]!r} too"
        )
    for row in reader:
        if any(row[name] is None for name in needed):
            raise InputError(f"{path}, line {reader.line_num}: fewer cells than columns")
        yield row
