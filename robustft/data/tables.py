"""Images listed in a table: path, caption and label columns under a header, .csv or .tsv.

Relative paths are taken from the table's folder. With a column `mask` a row is a masked region of
its image (robustft.data.crops), with `category` in place of `label` it has its class by name. A
column `split` sorts the rows into train, val and test; without one, a table is what its name ends
in (`flowers-test.csv` is a test split), and training data otherwise. A table of captions without
labels is of images with captions, any number of rows an image.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from robustft.data.captioned import CaptionedDataset, together
from robustft.data.classes import ClassList, Lines, read_class_list
from robustft.data.crops import MaskedCrops
from robustft.data.datasets import ImageDataset, PairDataset
from robustft.data.folders import SPLITS, carve_validation
from robustft.data.images import FileImages, StoredImages
from robustft.data.masks import WHOLE
from robustft.data.table_rows import Row, columns, read_rows, rows_of_split
from robustft.data.templates import Templates, read_templates
from robustft.errors import InputError, warn


def load_table(
    path: str | Path,
    split: str,
    *,
    seed: int = 0,
    val_fraction: float = 0.1,
    classnames: Lines = None,
    templates: Templates = None,
) -> ImageDataset:
    """One split of a table with columns `path` and `label` (an index into the class names) or
    `category` (one of them), and optionally `caption`, `split`, `mask` and `region` (the number of
    a mask in it, robustft.data.masks; all of a picture that is not black where it has none). Of a
    table with `path` and `caption` alone a CaptionedDataset.

    Class names and templates are given, or stand beside the table in classnames.txt and
    templates.txt, one a line; without class names the categories are the classes, sorted. A missing
    val split is carved from the training rows by `seed`.
    Errors: InputError naming the table and, where there is one, the line.
    """
    path = Path(path)
    if split not in SPLITS:
        raise InputError(f"split: got {split!r}, expected one of {', '.join(SPLITS)}")
    if lists_captions(path):
        if classnames is not None or templates is not None:
            raise InputError(
                f"{path} has no column 'label' for the class names or templates that were given"
            )
        return load_captions(path, split, seed=seed, val_fraction=val_fraction)
    named = "label" not in columns(path) and "category" in columns(path)
    header, rows = read_rows(path, needed=("path", "category" if named else "label"))
    given = classnames if classnames is not None else _beside(path, "classnames")
    listed = read_class_list(given)
    names = [] if listed is None else _in_label_order(listed)
    if named and not names:
        names = sorted({row["category"].strip() for _, row in rows} - {""})
    if not names:
        raise InputError(
            f"{path} has labels but no class names: put classnames.txt beside it, one name a line "
            "in the order of the labels, or pass classnames"
        )
    chosen, carve = rows_of_split(path, header, rows, split)
    if named:
        labels = _by_name(path, chosen, names)
    else:
        labels = [_label(path, line, row["label"], len(names)) for line, row in chosen]
    present = sorted(set(labels))
    dataset = ImageDataset(
        _images(path, header, chosen),
        labels,
        classnames=names,
        templates=read_templates(templates or _beside(path, "templates")),
        name=path.stem,
        split=split,
        captions=_captions(path, chosen) if "caption" in header else None,
        class_subset=present if split == "test" and len(present) < len(names) else None,
    )
    return carve_validation(dataset, split, seed, val_fraction) if carve else dataset


def lists_captions(path: str | Path) -> bool:
    """Whether there is a table, and it has captions and no labels."""
    names = columns(Path(path))
    return "caption" in names and names.isdisjoint(("label", "category"))


def load_captions(
    path: str | Path,
    split: str,
    *,
    seed: int = 0,
    val_fraction: float = 0.1,
    most: int | None = None,
) -> CaptionedDataset:
    """One split of a table with columns `path` and `caption` (or open_clip's `filepath` and
    `title`), and optionally `split`: images, each with the captions of all its rows.

    most: how many captions of an image are taken, its first ones; None for all. Blank captions are
    left out and counted in a warning. A missing val split is carved by `seed`, image by image.
    Errors: as for `load_table`.
    """
    path = Path(path)
    header, rows = read_rows(path, needed=("path", "caption"))
    chosen, carve = rows_of_split(path, header, rows, split)
    said = ((row["path"].strip(), row["caption"]) for _, row in chosen)
    images, texts, owners, listed = together(said, path, most=most)
    if not images:
        raise InputError(f"{path}: got no {split} row with a caption, expected at least one")
    dataset = CaptionedDataset(
        FileImages([path.parent / image for image in images]),
        texts,
        owners,
        name=path.stem,
        split=split,
        listed=listed,
    )
    if carve:
        dataset = carve_validation(dataset, split, seed, val_fraction)
    return dataset


def load_pairs(path: str | Path, *, n: int | None = None, seed: int = 0) -> PairDataset:
    """Image–caption pairs from a table with columns `path` and `caption` (or open_clip's `filepath`
    and `title`).

    Rows with a blank caption are left out, and one warning counts them. With `n` below the number
    of the others, `n` of them drawn by `seed`, in the table's order; otherwise all.
    """
    path = Path(path)
    _, found = read_rows(path, needed=("path", "caption"))
    rows = [(line, row) for line, row in found if row["caption"].strip()]
    if not rows:
        raise InputError(f"{path}, line {found[0][0]}: the caption is empty, and all others are")
    if len(rows) < len(found):
        blank = next(line for line, row in found if not row["caption"].strip())
        warn(
            f"{path}: {len(found) - len(rows)} of {len(found)} rows have no caption (the first in "
            f"line {blank}) and are left out"
        )
    available = len(rows)
    if n is not None and n < len(rows):
        rng = np.random.default_rng(np.random.SeedSequence([seed]))
        rows = [rows[row] for row in np.sort(rng.choice(len(rows), n, replace=False))]
    return PairDataset(
        FileImages([_image_path(path, row) for _, row in rows]),
        [row["caption"] for _, row in rows],
        name=path.stem,
        available=available,
    )


def _in_label_order(listed: ClassList) -> list[str]:
    """The names of a list: its lines stand in the order of the labels, or begin with them."""
    if listed.folders is None or not all(folder.isdecimal() for folder in listed.folders):
        return listed.names
    labels = [int(folder) for folder in listed.folders]
    if sorted(labels) != list(range(len(labels))):
        raise InputError(f"{listed.source}: expected the labels 0..{len(labels) - 1}, each once")
    return [listed.names[labels.index(label)] for label in range(len(labels))]


def _label(path: Path, line: int, text: str, classes: int) -> int:
    try:
        label = int(text)
    except ValueError:
        raise InputError(
            f"{path}, line {line}: got the label {text!r}, expected an integer"
        ) from None
    if not 0 <= label < classes:
        raise InputError(
            f"{path}, line {line}: got the label {label}, "
            f"expected 0..{classes - 1} ({classes} class names)"
        )
    return label


def _by_name(path: Path, rows: list[Row], names: list[str]) -> list[int]:
    """The label of each row's category."""
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise InputError(f"{path}: the class name {twice!r} stands twice, expected a label column")
    label_of = {name: label for label, name in enumerate(names)}
    for line, row in rows:
        if row["category"].strip() not in label_of:
            raise InputError(
                f"{path}, line {line}: got the category {row['category']!r}, expected a class name"
            )
    return [label_of[row["category"].strip()] for _, row in rows]


def _images(path: Path, header: list[str], rows: list[Row]) -> StoredImages:
    """The images of rows, or their masked regions."""
    pictures = [_image_path(path, row) for _, row in rows]
    if "mask" not in header:
        return FileImages(pictures)
    numbers = []
    for line, row in rows:
        number = row.get("region", "").strip() or str(WHOLE)
        if not row["mask"].strip() or not number.lstrip("-").isdecimal():
            raise InputError(
                f"{path}, line {line}: got the mask {row['mask']!r} and the region {number!r}, "
                "expected a file and a whole number or nothing"
            )
        numbers.append(int(number))
    return MaskedCrops(pictures, [path.parent / row["mask"].strip() for _, row in rows], numbers)


def _captions(path: Path, rows: list[Row]) -> list[str]:
    for line, row in rows:
        if not row["caption"].strip():
            raise InputError(
                f"{path}, line {line}: the caption is empty; expected a text, or a table without "
                "the column"
            )
    return [row["caption"] for _, row in rows]


def _image_path(table: Path, row: dict[str, str]) -> Path:
    return table.parent / row["path"].strip()


def _beside(path: Path, stem: str) -> Path | None:
    beside = path.parent / f"{stem}.txt"
    return beside if beside.is_file() else None
