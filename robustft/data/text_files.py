"""Lines of text files, with what is wrong in them named by file and line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from robustft.errors import InputError
from robustft.optional import require

_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def text_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file (a byte order mark is allowed), with their ends, one at a time.

    Errors: InputError if there is no such file, or naming the line that is not UTF-8.
    """
    if not path.is_file():
        raise InputError(f"text file not found: {path}")
    try:
        with open(path, "rb") as start:
            if start.read(2) in _UTF_16:
                raise InputError(f"{path}, line 1: the file is UTF-16; save it as UTF-8")
        # newline="": csv needs the ends of lines inside quotations as they are.
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            for number, line in enumerate(file, 1):
                if not line.isascii():
                    _check_decoded(path, number, line)
                yield line
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def filled_lines(path: Path) -> list[tuple[int, str]]:
    """(number, text) of each line that is not blank, without its end and surrounding spaces."""
    lines = ((number, line.strip("\r\n ")) for number, line in enumerate(text_lines(path), 1))
    return [(number, line) for number, line in lines if line.strip()]


def read_yaml(path: Path) -> Any:
    """What a YAML file holds. Errors: InputError as for `text_lines`, or where it is no YAML."""
    yaml = require("yaml", extra="train")
    try:
        return yaml.safe_load("".join(text_lines(path)))
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error


def _check_decoded(path: Path, number: int, line: str) -> None:
    try:
        line.encode()
    except UnicodeEncodeError as error:
        byte = ord(line[error.start]) - 0xDC00
        raise InputError(
            f"{path}, line {number}: byte 0x{byte:02x} is not UTF-8 (perhaps of an older code "
            "page, such as 1252); save the file as UTF-8"
        ) from None
