"""What methods said about the same images: the samples of result lines, laid side by side."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from robustft.errors import InputError, warn
from robustft.evaluate.samples import FIELD, FOLDER, Samples, samples_of
from robustft.report.names import Row, in_order, row_of

ROLES = ("id", "ood", "forgetting")


@dataclass(frozen=True, eq=False)
class Shared:
    """A data set as methods saw it with one seed: the same images in the same order.

    set_file: its class names and images; said: by method, in the order of tables; repeated: whether
    an image may be there several times (under a corruption, at every severity).
    """

    dataset: str
    role: str
    seed: int
    set_file: Path
    said: dict[Row, Samples]
    repeated: bool = False

    @property
    def labels(self) -> Tensor:
        return next(iter(self.said.values())).labels

    @property
    def index(self) -> Tensor:
        return next(iter(self.said.values())).index


@dataclass(frozen=True)
class Outcomes:
    """sets: by their role; notes: what could not be read, a line each."""

    sets: list[Shared]
    notes: list[str]


def read_outcomes(records: Iterable[Mapping[str, Any]]) -> Outcomes:
    """The samples of settled records, by set and seed. Of several lines of one method, set and seed
    the last one counts, as in the tables; of a curve its selected point. What cannot be read is
    left out, with a warning."""
    lines = {
        (r["role"], r["dataset"], r["seed"], row_of(r)): r
        for r in records
        if r["role"] in ROLES and r.get("selected", True)
    }
    found: dict[tuple[str, str, int, str], dict[Row, Samples]] = {}
    files: dict[tuple[str, str, int, str], tuple[Path, bool]] = {}
    notes = []
    for (role, dataset, seed, row), line in lines.items():
        try:
            samples = samples_of(line)
        except (InputError, OSError) as error:
            notes.append(str(error))
            continue
        if samples is None:
            continue
        key = role, dataset, seed, _images(samples)
        found.setdefault(key, {})[row] = samples
        files[key] = line[FIELD].folder / FOLDER / samples.images, "corruption" in line
    shared = [
        Shared(dataset, role, seed, file, {row: said[row] for row in in_order(said)}, repeated)
        for (role, dataset, seed, _), said, (file, repeated) in zip(
            found, found.values(), files.values(), strict=True
        )
    ]
    if notes:
        more = f" (and {len(notes) - 1} more)" if len(notes) > 1 else ""
        warn(f"samples are left out of the report: {notes[0]}{more}")
    return Outcomes(sorted(shared, key=lambda one: ROLES.index(one.role)), notes)


def _images(samples: Samples) -> str:
    """Which images these are: of one set, the same rows with the same labels."""
    total = hashlib.sha256(samples.images.encode())
    for column in (samples.index, samples.labels):
        total.update(column.numpy().tobytes())
    return total.hexdigest()
