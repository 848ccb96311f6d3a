"""Which data set a record is of, where several result files are put together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

from robustft.evaluate.corruptions import together

_IN_CLASSES = ("id", "ood")


def settle(
    records: Iterable[Mapping[str, Any]], *, corruptions_apart: bool = False
) -> list[dict[str, Any]]:
    """Records in which one (role, data set) is one set, for a table's columns.

    - Accuracies on validation data are left out: they chose, and measure nothing.
    - Sets of one name that lie at different paths, or are different splits, get names that say so.
    - The zero-shot model is trained on nothing, so that its own lines cannot tell what is in
      distribution: on a set that fine-tuned models call "id" or "ood" it counts as that.
    - Corruptions of one set are one set (robustft.evaluate.corruptions), unless they are to be
      apart.

    Doing it twice changes nothing.
    """
    measured = (r for r in records if r["role"] != "validation")
    lines = list(map(dict, measured)) if corruptions_apart else together(measured)
    for key, tail in (("path", _tails), ("split", _plain)):
        _tell_apart(lines, key, tail)
    roles: dict[str, set[str]] = {}
    for line in lines:
        if line["role"] in _IN_CLASSES and line["method"] != "zero-shot":
            roles.setdefault(line["dataset"], set()).add(line["role"])
    settled = []
    for line in lines:
        found: Iterable[str] = (line["role"],)
        if line["role"] in _IN_CLASSES and line["method"] == "zero-shot":
            found = sorted(roles.get(line["dataset"], ())) or found
        settled += [{**line, "role": role} for role in found]
    return settled


def _tell_apart(lines: list[dict[str, Any]], key: str, names: Any) -> None:
    """Rename sets that share a name and differ in `key`; lines without it keep the name."""
    values: dict[str, dict[str, None]] = {}
    for line in lines:
        if line["role"] != "ratio" and isinstance(line.get(key), str):
            values.setdefault(line["dataset"], {})[line[key]] = None
    for dataset, found in values.items():
        if len(found) < 2:
            continue
        tails = names(list(found))
        for line in lines:
            if line["role"] != "ratio" and line["dataset"] == dataset and line.get(key) in tails:
                name = f"{dataset} ({tails[line[key]]})"
                line["dataset"] = name
                if line["role"] == "geometry":  # whose measures bear no data set's name
                    continue
                for measure in [k for k in line if k.startswith(f"{dataset}:")]:
                    line[f"{name}{measure.removeprefix(dataset)}"] = line.pop(measure)


def _tails(paths: list[str]) -> dict[str, str]:
    """The shortest ends of paths by which all of them differ."""
    parts = [PurePath(path).parts for path in paths]
    for n in range(1, max(map(len, parts)) + 1):
        ends = ["/".join(p[-n:]) for p in parts]
        if len(set(ends)) == len(ends):
            return dict(zip(paths, ends, strict=True))
    return dict(zip(paths, paths, strict=True))


def _plain(values: list[str]) -> dict[str, str]:
    return {value: value for value in values}
