"""The rows of a .csv or .tsv table under its header, and which of them make up a split."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from robustft.data.folders import SPLITS
from robustft.data.pictures import IMAGE_SUFFIXES
from robustft.data.text_files import text_lines
from robustft.errors import InputError

_ALSO = {"filepath": "path", "title": "caption"}  # what open_clip's tables call them
_DELIMITERS = {".csv": ",", ".tsv": "\t"}

Row = tuple[int, dict[str, str]]
"""The number of its first line, and its cells by column."""


def is_table(spec: str | Path) -> bool:
    """Whether the name is a table's: ends in .csv or .tsv, and is not a folder's."""
    return Path(spec).suffix.lower() in _DELIMITERS and not Path(spec).is_dir()


def columns(path: Path) -> set[str]:
    """What the columns of a table are called here; none where there is no table."""
    if not is_table(path) or not path.is_file():
        return set()
    header = next((cells for _, cells in _cells(path)), [])
    return {_ALSO.get(cell.strip(), cell.strip()) for cell in header}


def read_rows(path: Path, needed: tuple[str, ...]) -> tuple[list[str], list[Row]]:
    """A table's columns, by the names that they have here, and its rows, with a path in each.

    needed: columns that must be there once. Errors: InputError naming the table and the line.
    """
    if not is_table(path):
        raise InputError(f"a table must end in .csv or .tsv, got {path}")
    if not path.is_file():
        raise InputError(f"table not found: {path}")
    rows: list[Row] = []
    header: list[str] = []
    for line, cells in _cells(path):
        if not header:
            header = _header(path, cells, needed)
        elif any(cell.strip() for cell in cells):
            if len(cells) != len(header):
                raise InputError(
                    f"{path}, line {line}: {len(cells)} cells for {len(header)} columns"
                )
            row = dict(zip(header, cells, strict=True))
            if not row["path"].strip():
                raise InputError(f"{path}, line {line}: the path is empty")
            rows.append((line, row))
    if not header:
        _header(path, [], needed)
    if not rows:
        raise InputError(f"{path} has a header but no rows")
    return header, rows


def _header(path: Path, cells: list[str], needed: tuple[str, ...]) -> list[str]:
    header = [cell.strip() for cell in cells]
    header = [_ALSO.get(x, x) if _ALSO.get(x, x) not in header else x for x in header]
    for name in needed:
        if header.count(name) != 1:
            problem = "no column" if name not in header else "more than one column"
            raise InputError(
                f"{path} has {problem} {name!r}: its first line must name the columns "
                f"{', '.join(needed)}; found {', '.join(header) or 'nothing'}"
            )
    return header


def _cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Each row's first line and its cells. InputError for a quotation that is not closed rightly:
    it would swallow the rows below it."""
    delimiter = _DELIMITERS[path.suffix.lower()]
    reader = csv.reader(text_lines(path), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise InputError(
                f"{path}, line {line}: {error} (a cell that begins with a quotation mark must end "
                'with one, and marks inside it are doubled: "")'
            ) from error
        if cells is None:
            return
        if reader.line_num > line:
            _check_one_row(path, line, cells, delimiter)
        yield line, cells


def _check_one_row(path: Path, line: int, cells: list[str], delimiter: str) -> None:
    """A cell may hold line breaks, but not lines that are rows themselves: those begin, up to a
    delimiter, with an image's name."""
    inside = (part for cell in cells for part in cell.splitlines()[1:])
    for part in inside:
        starts = [piece.strip().lower() for piece in part.split(delimiter)[:-1]]
        if any(Path(start).suffix in IMAGE_SUFFIXES for start in starts):
            raise InputError(
                f"{path}, line {line}: a quotation begins here and takes in the row {part!r}; "
                "close it, or double the quotation mark"
            )


def _splits(path: Path, header: list[str], rows: list[Row]) -> list[str]:
    if "split" not in header:
        named = re.search(r"(?:^|[^a-z])(train|val|test)$", path.stem.lower())
        return [named.group(1) if named else "train"] * len(rows)
    for line, row in rows:
        if row["split"].strip() not in SPLITS:
            raise InputError(
                f"{path}, line {line}: got the split {row['split']!r}, "
                f"expected one of {', '.join(SPLITS)}"
            )
    return [row["split"].strip() for _, row in rows]


def rows_of_split(
    path: Path, header: list[str], rows: list[Row], split: str
) -> tuple[list[Row], bool]:
    """The rows that make up a split, and whether it is then to be carved from them."""
    splits = _splits(path, header, rows)
    carve = split != "test" and "val" not in splits
    wanted = "train" if carve else split
    chosen = [row for row, where in zip(rows, splits, strict=True) if where == wanted]
    if not chosen:
        hint = "" if "split" in header else " (it has no split column, so its name decides)"
        raise InputError(f"{path} has no {wanted} rows: all are {', '.join(set(splits))}{hint}")
    return chosen, carve
