"""Images listed in a table: path, caption and label columns under a header, .csv or .tsv.

Relative paths are taken from the table's folder. A column `split` sorts the rows into train, val
and test; without one, a table is what its name ends in (`flowers-test.csv` is a test split), and
training data otherwise.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np

from robustft.data.datasets import ImageDataset, PairDataset
from robustft.data.folders import SPLITS, carve_validation
from robustft.data.images import FileImages
from robustft.data.names import Lines, check_distinct, read_lines, read_templates
from robustft.errors import InputError

_DELIMITERS = {".csv": ",", ".tsv": "\t"}


def is_table(spec: str | Path) -> bool:
    """Whether the name is a table's: ends in .csv or .tsv."""
    return Path(spec).suffix.lower() in _DELIMITERS


def load_table(
    path: str | Path,
    split: str,
    *,
    seed: int = 0,
    val_fraction: float = 0.1,
    classnames: Lines = None,
    templates: Lines = None,
) -> ImageDataset:
    """One split of a table with columns `path` and `label` (an index into the class names), and
    optionally `caption` and `split`.

    Class names and templates are given, or stand beside the table in classnames.txt and
    templates.txt, one a line. A missing val split is carved from the training rows by `seed`.
    Errors: InputError naming the table and, where there is one, the line.
    """
    path = Path(path)
    if split not in SPLITS:
        raise InputError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    header, rows = _read(path, needed=("path", "label"))
    names = read_lines(classnames or _beside(path, "classnames"))
    if not names:
        raise InputError(
            f"{path} has labels but no class names: put classnames.txt beside it, one name a line "
            "in the order of the labels, or pass classnames"
        )
    check_distinct(names, "classnames")
    splits = _splits(path, header, rows)
    carve = split != "test" and "val" not in splits
    wanted = "train" if carve else split
    chosen = [row for row, where in zip(rows, splits, strict=True) if where == wanted]
    if not chosen:
        hint = "" if "split" in header else " (it has no split column, so its name decides)"
        raise InputError(f"{path} has no {wanted} rows: all are {', '.join(set(splits))}{hint}")
    labels = [_label(path, line, row["label"], len(names)) for line, row in chosen]
    present = sorted(set(labels))
    dataset = ImageDataset(
        FileImages([_image_path(path, row) for _, row in chosen]),
        labels,
        classnames=names,
        templates=read_templates(templates or _beside(path, "templates")),
        name=path.stem,
        split=split,
        captions=[row["caption"] for _, row in chosen] if "caption" in header else None,
        class_subset=present if split == "test" and len(present) < len(names) else None,
    )
    return carve_validation(dataset, split, seed, val_fraction) if carve else dataset


def load_pairs(path: str | Path, *, n: int | None = None, seed: int = 0) -> PairDataset:
    """Image–caption pairs from a table with columns `path` and `caption`.

    With `n` below the number of rows, `n` of them drawn by `seed`, in the table's order.
    """
    path = Path(path)
    _, rows = _read(path, needed=("path", "caption"))
    if n is not None and n < len(rows):
        rng = np.random.default_rng(np.random.SeedSequence([seed]))
        rows = [rows[row] for row in np.sort(rng.choice(len(rows), n, replace=False))]
    return PairDataset(
        FileImages([_image_path(path, row) for _, row in rows]),
        [row["caption"] for _, row in rows],
        name=path.stem,
    )


Row = tuple[int, dict[str, str]]  # the line's number and its cells


def _read(path: Path, needed: tuple[str, ...]) -> tuple[list[str], list[Row]]:
    if not is_table(path):
        raise InputError(f"a table must end in .csv or .tsv, got {path}")
    if not path.is_file():
        raise InputError(f"table not found: {path}")
    delimiter = _DELIMITERS[path.suffix.lower()]
    rows: list[Row] = []
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            header = [cell.strip() for cell in next(reader, [])]
            for name in needed:
                if name not in header:
                    raise InputError(
                        f"{path} has no column {name!r}: its first line must name the columns "
                        f"{', '.join(needed)}; found {', '.join(header) or 'nothing'}"
                    )
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                if len(cells) != len(header):
                    raise InputError(
                        f"{path}, line {reader.line_num}: {len(cells)} cells for "
                        f"{len(header)} columns"
                    )
                rows.append((reader.line_num, dict(zip(header, cells, strict=True))))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    if not rows:
        raise InputError(f"{path} has a header but no rows")
    for line, row in rows:
        if not row["path"].strip():
            raise InputError(f"{path}, line {line}: the path is empty")
    return header, rows


def _splits(path: Path, header: list[str], rows: list[Row]) -> list[str]:
    if "split" not in header:
        named = re.search(r"(?:^|[^a-z])(train|val|test)$", path.stem.lower())
        return [named.group(1) if named else "train"] * len(rows)
    for line, row in rows:
        if row["split"].strip() not in SPLITS:
            raise InputError(
                f"{path}, line {line}: split must be one of {', '.join(SPLITS)}, "
                f"got {row['split']!r}"
            )
    return [row["split"].strip() for _, row in rows]


def _label(path: Path, line: int, text: str, classes: int) -> int:
    try:
        label = int(text)
    except ValueError:
        raise InputError(f"{path}, line {line}: label must be an integer, got {text!r}") from None
    if not 0 <= label < classes:
        raise InputError(
            f"{path}, line {line}: label must lie in 0..{classes - 1} ({classes} class names), "
            f"got {label}"
        )
    return label


def _image_path(table: Path, row: dict[str, str]) -> Path:
    return table.parent / row["path"].strip()


def _beside(path: Path, stem: str) -> Path | None:
    beside = path.parent / f"{stem}.txt"
    return beside if beside.is_file() else None
