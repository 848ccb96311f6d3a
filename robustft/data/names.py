"""Class names and templates from text files and lists."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from robustft.data.captions import check_template
from robustft.errors import InputError

Lines = Sequence[str] | str | Path | None


def read_lines(source: Lines) -> list[str] | None:
    """The non-empty lines of a UTF-8 text file, or the list as given; None stays None."""
    if source is None:
        return None
    if not isinstance(source, (str, Path)):
        return [str(line) for line in source]
    path = Path(source)
    if not path.is_file():
        raise InputError(f"text file not found: {path}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    return [line.strip("\r\n ") for line in text.splitlines() if line.strip()]


def read_templates(source: Lines) -> list[str] | None:
    """Templates, one "{}" a line, each checked; None stays None."""
    lines = read_lines(source)
    if lines is None:
        return None
    where = f"template in {source}" if isinstance(source, (str, Path)) else "template"
    if not lines:
        raise InputError(f"no {where}")
    return [check_template(line, where) for line in lines]


def names_of_folders(lines: list[str], folders: list[str], source: str) -> list[str]:
    """Class names in the order of `folders` (sorted).

    `lines` are "folder<TAB>name" in any order, or one name a line in the folders' order. Errors:
    InputError when they do not match the folders, or two folders get one name.
    """
    if any("\t" in line for line in lines):
        pairs = [line.split("\t", 1) for line in lines]
        if any(len(pair) != 2 for pair in pairs):
            bad = next(line for line, pair in zip(lines, pairs, strict=True) if len(pair) != 2)
            raise InputError(f"{source}: every line must be 'folder<TAB>name', got {bad!r}")
        table = {folder.strip(): name.strip() for folder, name in pairs}
        missing = [folder for folder in folders if folder not in table]
        if missing:
            raise InputError(f"{source} names no class for the folder {missing[0]!r}")
        names = [table[folder] for folder in folders]
    else:
        if len(lines) != len(folders):
            raise InputError(
                f"{source} has {len(lines)} class names for {len(folders)} class folders "
                f"({', '.join(folders[:3])}{', ...' if len(folders) > 3 else ''})"
            )
        names = lines
    check_distinct(names, source)
    return names


def check_distinct(names: Sequence[str], source: str) -> None:
    """InputError if a class name occurs twice."""
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(f"{source} has the class name {repeated[0]!r} twice")
