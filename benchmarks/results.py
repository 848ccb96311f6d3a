"""Rows to files and back: CSV for people and spreadsheets, JSON with types.

What is recorded lies in results/<processor>/, so that rows of several stand beside each other.
"""

from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import Row
from robustft import atomic

FOLDER = Path(__file__).parent / "results"
_TYPES = {field.name: str(field.type) for field in dataclasses.fields(Row)}


def write(rows: Iterable[Row], name: str, folder: Path = FOLDER) -> Path:
    """Write <folder>/<name>.csv and .json, each whole or not at all; returns the CSV's path."""
    records = [dataclasses.asdict(row) for row in rows]
    atomic.write_json(folder / f"{name}.json", records)
    path = folder / f"{name}.csv"
    with (
        atomic.replacing(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as f,
    ):
        writer = csv.DictWriter(f, list(_TYPES), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
    return path


def place(folder: Path, processor: str) -> Path:
    """Where rows of a processor go: the folder, or the processor's own where it is FOLDER."""
    return folder / slug(processor) if folder.resolve() == FOLDER.resolve() else folder


def slug(processor: str) -> str:
    """A processor's name as a folder's: "Intel(R) Xeon(R) Processor, 2 cores" is intel-xeon."""
    name = re.sub(r"\((r|tm)\)|\b(processor|cpu)\b|@.*|, \d+ cores", " ", processor.lower())
    return "-".join(re.findall(r"[a-z0-9][a-z0-9.]*", name)) or "unknown"


def recorded(name: str) -> list[Path]:
    """The files of this name, of all processors."""
    return sorted(FOLDER.rglob(f"{name}.csv"))


def read(path: Path) -> list[Row]:
    """The rows of a CSV. ValueError if its columns are not those of a Row."""
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if set(reader.fieldnames or ()) != set(_TYPES):
            raise ValueError(f"{path}: its columns are not those of this version: measure again")
        return [Row(**{name: _typed(name, text) for name, text in line.items()}) for line in reader]


def _typed(name: str, text: str) -> Any:
    kind = _TYPES[name]
    if kind == "str":
        return text
    if text == "":
        return None
    return int(text) if kind == "int" else float(text)


Panel = tuple[str, str, str]


def panels(rows: Sequence[Row]) -> dict[Panel, list[Row]]:
    """Rows by variant, mode and dtype: what belongs into one table and one diagram."""
    found: dict[Panel, list[Row]] = {}
    for row in rows:
        found.setdefault((row.variant, row.mode, row.dtype), []).append(row)
    return found


def by_shape(rows: Sequence[Row]) -> dict[str, dict[str, Row]]:
    """shape → provider → row, in the order of measurement."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(row.shape, {})[row.provider] = row
    return found


def best(rows: Sequence[Row], kind: str) -> Row | None:
    """The fastest row of a kind, if one was timed."""
    timed = [row for row in rows if row.kind == kind and row.p50_ms is not None]
    return min(timed, key=lambda row: row.p50_ms or 0.0, default=None)
