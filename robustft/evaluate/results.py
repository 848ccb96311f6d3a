"""The record of evaluations: one JSON object a line, checked when written and when read.

Roles "id", "ood" and "forgetting" carry "<dataset>:top1", or, of a data set with captions,
"<dataset>:mean-recall" and the six recalls it is the mean of, and may carry more of MEASURES; role
"geometry" carries "RSA:euclidean" and "RSA:cosine" and may carry more of GEOMETRY, role "ratio" is
one bin of the accuracy ratio, role "validation" the accuracy by which a run of learning rate "lr"
was chosen or not. docs/evaluation.md lists the fields. JSON has no NaN: a number that is not finite
is written as null and read as None, and the report leaves it out. `n` is null where the results of
another program do not tell it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robustft import jsonlines
from robustft.errors import InputError
from robustft.evaluate import samples, segmentation
from robustft.evaluate.retrieval import MEAN
from robustft.evaluate.retrieval import MEASURES as RECALLS

ACCURACIES = ("id", "ood", "forgetting")
ROLES = (*ACCURACIES, "geometry", "ratio", "validation")
#: What "<dataset>:<measure>" may be.
MEASURES = {
    "top1": (0.0, 1.0),
    "top5": (0.0, 1.0),
    "mean-per-class": (0.0, 1.0),
    "macro-f1": (0.0, 1.0),
    "worst-group": (0.0, 1.0),
    "ece": (0.0, 1.0),
    "adaptive-ece": (0.0, 1.0),
    "nll": (0.0, math.inf),
    "brier": (0.0, 2.0),
    **dict.fromkeys((MEAN, *RECALLS, *segmentation.MEASURES), (0.0, 1.0)),
}
_HEADLINES = {"miou": "mIoU", MEAN: "mean recall"}
# Rounding may take a similarity a little out of its range.
GEOMETRY = {
    "RSA:euclidean": (-1.001, 1.001),
    "RSA:cosine": (-1.001, 1.001),
    "CKA:linear": (-0.001, 1.001),
    "difference-spread": (0.0, math.inf),
}
_LARGEST = 2**64
_DEFAULTS: dict[str, Any] = {"base": None, "alpha": None, "selected": True}


def append_result(path: str | Path, record: dict[str, Any]) -> dict[str, Any]:
    """Check `record` and append it to `path` as one line.

    `base`, `alpha` and `selected` default to null, null and true; zero-dimensional tensors and
    numpy numbers become plain ones. What a suite's lines carry sample by sample goes to a file of
    its own, in the folder `samples` beside `path` (robustft.evaluate.samples).

    Returns: the record as written. Errors: InputError naming the field.
    """
    record = samples.keep(check_result(record), Path(path).parent)
    jsonlines.append(path, record)
    return record


def read_results(path: str | Path) -> list[dict[str, Any]]:
    """All records of a file, in order; blank lines are skipped, and so is, with a warning, the
    beginning of a last line that a full disk or a killed process left.

    Errors: OSError, or InputError naming the file and the line that is no record.
    """
    records = []
    for number, value in jsonlines.read(path):
        try:
            records.append(samples.located(check_result(value), Path(path).parent))
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error}") from error
    return records


def check_result(record: Any) -> dict[str, Any]:
    """The record with defaults filled in and plain numbers; InputError names what is wrong."""
    if not isinstance(record, dict):
        raise InputError(f"record: got {type(record).__name__}, expected an object")
    try:
        plain = {str(key): _plain(str(key), value) for key, value in record.items()}
        samples.check_name(plain.get(samples.FIELD))
    except RecursionError as error:
        raise InputError("record: got values nested too deeply, expected plain ones") from error
    role = plain.get("role")
    if role not in ROLES:
        raise InputError(f"role: got {role!r}, expected one of {', '.join(ROLES)}")
    plain = {**_DEFAULTS, **plain}

    _number(plain, "seed", whole=True, low=0, high=_LARGEST)
    _number(plain, "n", whole=True, optional=True, low=1, high=_LARGEST)
    _text(plain, "base", optional=True)
    if plain["alpha"] is not None:
        _number(plain, "alpha", low=0.0, high=1.0)
    if not isinstance(plain["selected"], bool):
        raise InputError(f"selected: got {plain['selected']!r}, expected true or false")
    if role == "ratio":
        _number(plain, "distance", optional=True, low=0.0)
        _number(plain, "accuracy_finetuned", optional=True, low=0.0, high=1.0)
        _number(plain, "accuracy_zeroshot", optional=True, low=0.0, high=1.0)
        _number(plain, "ratio", optional=True, low=0.0)
    else:
        for key in ("dataset", "split", "method"):
            _text(plain, key)
        if role == "validation":
            _number(plain, "lr", low=0.0)
        for key in ("corruption", "together"):
            if key in plain:
                _text(plain, key)
        if plain.get("chosen_on") is not None:
            _check_choice(plain["chosen_on"])
        _check_measures(plain)
    return plain


def _check_choice(found: Any) -> None:
    """Check on what a strength was chosen: a data set, its split and how many images it has."""
    if not isinstance(found, dict) or set(found) != {"dataset", "split", "n"}:
        raise InputError(f"chosen_on: got {found!r}, expected dataset, split and n")
    for key in ("dataset", "split"):
        _text(found, key)
    _number(found, "n", whole=True, low=1, high=_LARGEST)


def _check_measures(record: dict[str, Any]) -> None:
    """Check what a line measures, and that it has what its role asks for."""
    if record["role"] == "geometry":
        known, prefix = GEOMETRY, ""
        needed: tuple[str, ...] = ("RSA:euclidean", "RSA:cosine")
    else:
        known, needed, prefix = MEASURES, ("top1",), f"{record['dataset']}:"
        if f"{prefix}{MEAN}" in record:
            needed = (MEAN, *RECALLS)
            _number(record, "captions", whole=True, optional=True, low=1, high=_LARGEST)
    for measure, (low, high) in known.items():
        if measure in needed or f"{prefix}{measure}" in record:
            _number(record, f"{prefix}{measure}", optional=True, low=low, high=high)


def headline(record: Mapping[str, Any]) -> float | None:
    """The one number by which a data set stands in tables, in [0, 1]: its mIoU where regions make
    up a segmentation, the mean recall of captions, else top-1; None where the line has none."""
    name = record.get("dataset")
    found = (record.get(f"{name}:{measure}") for measure in (*_HEADLINES, "top1"))
    value = next((x for x in found if x is not None), None)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def headline_name(record: Mapping[str, Any]) -> str:
    """What that number is, where it is not top-1."""
    name = record.get("dataset")
    return next((what for key, what in _HEADLINES.items() if f"{name}:{key}" in record), "")


def unit(record: Mapping[str, Any]) -> str:
    """What n counts: "regions" where they make up a segmentation, else "images"."""
    return "regions" if headline_name(record) == _HEADLINES["miou"] else "images"


def counted(record: Mapping[str, Any]) -> str:
    """What a line was measured on: "360 images", "4,096 regions", "20 images, 100 captions"."""
    if record.get("n") is None:
        return "unknown"
    text = f"{record['n']:,} {unit(record)}"
    captions = record.get("captions")
    return text if captions is None else f"{text}, {captions:,} captions"


def _plain(key: str, value: Any) -> Any:
    if isinstance(value, samples.Measured):
        return value
    if hasattr(value, "item") and not isinstance(value, str | dict | list | tuple):
        try:
            value = value.item()
        except (ValueError, RuntimeError, TypeError) as error:
            raise InputError(f"{key}: got {type(value).__name__}, expected one number") from error
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(k): _plain(f"{key}.{k}", v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(key, v) for v in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise InputError(f"{key}: got {type(value).__name__}, expected a JSON value")


def _text(record: dict[str, Any], key: str, *, optional: bool = False) -> None:
    value = record.get(key)
    if value is None and optional:
        return
    if not isinstance(value, str) or not value:
        raise InputError(f"{key}: got {value!r}, expected a name")


def _number(
    record: dict[str, Any],
    key: str,
    *,
    whole: bool = False,
    optional: bool = False,
    low: float = -math.inf,
    high: float = math.inf,
) -> None:
    """`optional`: null stands for a number that was not finite; the key itself is needed."""
    if key not in record:
        raise InputError(f"{key}: missing")
    value = record[key]
    if value is None and optional:
        return
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
        kind = "an integer" if whole else "a number"
        raise InputError(f"{key}: got {value!r}, expected {kind}")
    if not low <= value <= high:
        raise InputError(f"{key}: got {value!r}, expected a value from {low} to {high}")
