"""Corruption errors, and the corruptions of one set put together.

CE of a corruption is the mean error over its five severities, divided by AlexNet's; mCE the mean CE
of all fifteen (ImageNet-C, arXiv 1903.12261).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from robustft.data.corruptions.names import NAMES, Corrupted, corruption_of

# AlexNet's mean error over the severities, which the paper divides by: the release's table
# (hendrycks/robustness, README), as google-research/augmix's imagenet.py has it too.
ALEXNET = dict(
    zip(
        NAMES,
        (
            *(0.886428, 0.894468, 0.922640, 0.819880, 0.826268, 0.785948, 0.798360, 0.866816),
            *(0.826572, 0.819324, 0.564592, 0.853204, 0.646056, 0.717840, 0.606500),
        ),
        strict=True,
    )
)

Record = dict[str, Any]
# What two lines must share to be of one model, at one operating point.
_ONE = (
    *("role", "split", "model", "pretrained", "method", "base"),
    *("alpha", "lr", "seed", "selected"),
)


def corruption_fields(name: str, under: Corrupted | None, top1: float) -> Record:
    """What a result line says of the corruption that its set `name` is under, if any: which one,
    what all of them are called together, and the CE of ImageNet's validation images."""
    if under is None or under.by.severity is not None:
        return {}
    found: Record = {"corruption": under.by.name, "together": under.together}
    if under.imagenet:
        found[f"{name}:ce"] = (1 - top1) / ALEXNET[under.by.name]
    return found


def together(records: Iterable[Mapping[str, Any]]) -> list[Record]:
    """Records in which several corruptions of one set are one set: each measure is their mean, and
    with all fifteen CE's is `mce`; n counts images, not how often each was shown.
    `top1_by_corruption` keeps the accuracies. Doing it twice changes nothing.
    """
    groups: dict[tuple[Any, ...], dict[str, Mapping[str, Any]]] = {}
    found: list[Mapping[str, Any] | tuple[Any, ...]] = []
    for record in records:
        if record.get("corruption") not in NAMES:
            found.append(record)
            continue
        key = (record["together"], _uncorrupted(record), *(record.get(field) for field in _ONE))
        if key not in groups:
            found.append(key)
        groups.setdefault(key, {})[record["corruption"]] = record  # of repeated ones the last
    return [
        _mean(str(one[0]), groups[one]) if isinstance(one, tuple) else dict(one) for one in found
    ]


def _uncorrupted(record: Mapping[str, Any]) -> str | None:
    """The path of the set that was corrupted here, which tells it from others of its name."""
    by, path = corruption_of(str(record.get("path", "")))
    return None if by is None else path


def _mean(name: str, by_corruption: Mapping[str, Mapping[str, Any]]) -> Record:
    """The record of several corruptions; one alone stays as it is."""
    lines = list(by_corruption.values())
    if len(lines) == 1:
        return dict(lines[0])
    whole = len(lines) == len(NAMES)
    name = name if whole else f"{name}, {len(lines)} of {len(NAMES)}"
    kept = {field: lines[0][field] for field in _ONE if field in lines[0]}
    path = _uncorrupted(lines[0])
    found: Record = {"dataset": name, **kept, "n": max(map(_images, lines))}
    found |= {} if path is None else {"path": path}
    first = lines[0]["dataset"]
    for measure in (
        key.removeprefix(f"{first}:") for key in lines[0] if key.startswith(f"{first}:")
    ):
        values = [line.get(f"{line['dataset']}:{measure}") for line in lines]
        numbers = [value for value in values if isinstance(value, float)]
        if len(numbers) == len(values):
            called = "mce" if measure == "ce" else measure
            if called != "mce" or whole:
                found[f"{name}:{called}"] = statistics.fmean(numbers)
    found["top1_by_corruption"] = {
        corruption: line.get(f"{line['dataset']}:top1")
        for corruption, line in by_corruption.items()
    }
    return found


def _images(line: Mapping[str, Any]) -> int:
    """How many images there are, each of which a corruption shows at every severity: what is said
    of one image at all of them is no more independent than what is said of it once."""
    severities = line.get(f"{line['dataset']}:each-group")
    times = len(severities) if isinstance(severities, Mapping) and severities else 1
    return int(line["n"]) // times


def summary(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for every set whose corruptions were measured together."""
    said = []
    for record in together(records):
        if "top1_by_corruption" in record and f"{record['dataset']}:top1" in record:
            name, count = record["dataset"], len(record["top1_by_corruption"])
            text = f"{name}: {100 * record[f'{name}:top1']:.2f}, the mean of {count} corruptions"
            mce = record.get(f"{name}:mce")
            said.append(text if mce is None else f"{text}; mCE {100 * mce:.1f} (AlexNet: 100)")
    return said
