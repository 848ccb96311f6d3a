"""Results as plain rows for other programs: tidy CSV, and CLIP_benchmark's JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import statistics
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from robustft.evaluate.foreign import METRICS, RECALLS
from robustft.evaluate.results import GEOMETRY
from robustft.evaluate.retrieval import MEAN
from robustft.report.names import display, in_order, row_of
from robustft.report.sets import settle
from robustft.report.text import readable

_COLUMNS = ("method", "base", "name", "role", "dataset", "measure", "mean", "std", "seeds", "n")
_ROLES = ("id", "ood", "forgetting", "geometry")

Records = Iterable[Mapping[str, Any]]


def tidy(records: Records) -> str:
    """CSV of every measure of every method and data set: its mean and sample standard deviation
    over seeds in full precision (none with one seed), how many seeds, and n, the samples.

    Of a curve the selected point counts, and of repeated records the last one.
    """
    chosen = _selected(records)
    rows = []
    for row in in_order(row_of(r) for r in chosen):
        mine = [r for r in chosen if row_of(r) == row]
        for role in _ROLES:
            for dataset in dict.fromkeys(r["dataset"] for r in mine if r["role"] == role):
                last = {r["seed"]: r for r in mine if (r["role"], r["dataset"]) == (role, dataset)}
                rows += [
                    {
                        "method": row[0],
                        "base": row[1] or "",
                        "name": display(row),
                        "role": role,
                        "dataset": dataset,
                        "measure": measure,
                        "mean": statistics.fmean(values),
                        "std": statistics.stdev(values) if len(values) > 1 else "",
                        "seeds": len(values),
                        "n": _one(r["n"] for r in last.values()),
                    }
                    for measure, values in _measured(last.values(), dataset).items()
                ]
    return _csv(_COLUMNS, rows)


def clip_benchmark(records: Records) -> list[dict[str, Any]]:
    """What CLIP_benchmark's `eval` leaves of each evaluation, one object a method, seed and data
    set, with our own fields after its own: robustft.evaluate.foreign reads them back. `pretrained`
    names the weights: of a model that is not the zero-shot one with its method and seed."""
    kept = ("role", "split", "method", "base", "alpha", "seed", "n", "captions")
    last: dict[Any, dict[str, Any]] = {}
    for r in _selected(records):
        if r["role"] == "geometry":
            continue
        metrics = {
            name: r[f"{r['dataset']}:{measure}"]
            for name, measure in (METRICS | RECALLS).items()
            if r.get(f"{r['dataset']}:{measure}") is not None
        }
        probe = r["method"] == "linear-probe" and r["role"] != "forgetting"
        task = "linear_probe" if probe else "zeroshot_classification"
        last[(row_of(r), r["seed"], r["role"], r["dataset"])] = {
            "dataset": r["dataset"],
            "model": str(r.get("model") or "CLIP"),
            "pretrained": _weights(r),
            "task": "zeroshot_retrieval" if f"{r['dataset']}:{MEAN}" in r else task,
            "metrics": metrics,
            "language": "en",
            **{key: r[key] for key in kept if key in r},
        }
    return list(last.values())


def _weights(record: Mapping[str, Any]) -> str:
    began = [str(record["pretrained"])] if record.get("pretrained") else []
    row = row_of(record)
    own = [] if began and row == ("zero-shot", None) else [display(row), f"seed {record['seed']}"]
    return ", ".join(began + own)


def clip_benchmark_csv(evaluations: Sequence[Mapping[str, Any]]) -> str:
    """The CSV that CLIP_benchmark's `build` makes of such objects."""
    plain = [{**one["metrics"], **one} for one in evaluations]
    rows = [{**one, "model_fullname": f"{one['model']} {one['pretrained']}"} for one in plain]
    columns = list(dict.fromkeys(key for row in rows for key in row if key != "metrics"))
    return _csv(columns, [{key: row.get(key) for key in columns} for row in rows])


def json_lines(values: Iterable[Any]) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def _selected(records: Records) -> list[dict[str, Any]]:
    mine = (r for r in records if r["role"] in _ROLES and r.get("selected", True))
    return settle(mine, corruptions_apart=True)


def _measured(records: Iterable[Mapping[str, Any]], dataset: str) -> dict[str, list[float]]:
    """The values of every measure, a seed each."""
    found: dict[str, list[float]] = {}
    for r in records:
        if r["role"] == "geometry":
            values = {key: r.get(key) for key in GEOMETRY}
        else:
            own = f"{dataset}:"
            values = {k.removeprefix(own): v for k, v in r.items() if k.startswith(own)}
        for name, value in values.items():
            if isinstance(value, int | float):
                found.setdefault(name, []).append(float(value))
    return found


def _one(values: Iterable[Any]) -> Any:
    """The value, if it is one and the same, else nothing."""
    found = set(values)
    return found.pop() if len(found) == 1 else None


def _csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({_text(key): _text(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _text(value: Any) -> Any:
    """Text that a spreadsheet takes for text: what it would take for a formula begins with '."""
    if not isinstance(value, str):
        return value
    text = readable(value)
    # Full-width signs count as the plain ones in some programs.
    begins = unicodedata.normalize("NFKC", text).lstrip()[:1]
    return f"'{text}" if begins in ("=", "+", "-", "@") else text
