"""The sections that fold out: every data set, how many images, every seed, and what was chosen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from robustft.evaluate.results import ACCURACIES, unit
from robustft.report.names import Row, display, in_order, row_of
from robustft.report.page.overview import MEASURES, by_measure
from robustft.report.page.section import Records, Report, Section
from robustft.report.page.sizes import sizes, span

_ROLES = {
    "id": "in distribution",
    "ood": "shifted",
    "forgetting": "other classes, zero-shot",
    "geometry": "geometry",
}


_ON = "in-distribution validation data"


def every_set(report: Report) -> Section:
    data = {"table": report.table, "display": display}
    return Section("sets", "Every data set", "every_set.html", data)


def other_measures(report: Report) -> Section | None:
    """Calibration and robustness."""
    if not report.beside:
        return None
    title = " and ".join(one.title.lower() for one in report.beside).capitalize()
    data = {"tables": report.beside, "display": display}
    return Section("measures", title, "measures.html", data)


def data_sets(report: Report) -> Section:
    """The sets that were measured, and those that choices were made on."""
    rows = []
    # A line of geometry does not tell.
    units = {r["dataset"]: unit(r) for r in report.records if r["role"] in ACCURACIES}
    for role, told in _ROLES.items():
        for name, n in sizes(report.records, (role,)).items():
            mine = [r for r in report.records if (r["role"], r.get("dataset")) == (role, name)]
            size = f"{span(n)} {units.get(name, 'images')}" if n else span(n)
            if captions := max((r.get("captions") or 0 for r in mine), default=0):
                size += f", {captions:,} captions"
            rows.append((name, told, _each(r["split"] for r in mine), n[0] if n else 0, size))
    chosen_on: dict[tuple[str, str], set[int]] = {}
    for r in report.lines:
        on = r if r["role"] == "validation" else r.get("chosen_on")
        if on:
            chosen_on.setdefault((on["dataset"], on["split"]), set()).add(on["n"])
    for (name, split), found in chosen_on.items():
        rows.append((name, "choices alone", split, min(found), span(sorted(found))))
    return Section("data", "Data sets and their sizes", "data_sets.html", {"rows": rows})


def seeds(report: Report) -> Section | None:
    """Every seed's own numbers."""
    values = by_measure(report.records)
    measures = [m for m in MEASURES if any(values[m.key].values())]
    every = sorted({seed for m in measures for row in values[m.key].values() for seed in row})
    if len(every) < 2:
        return None
    rows = []
    for row in in_order(row for m in measures for row in values[m.key]):
        for seed in every:
            found = [values[m.key].get(row, {}).get(seed) for m in measures]
            if any(value is not None for value in found):
                rows.append((display(row), seed, found))
    data = {"rows": rows, "measures": measures}
    return Section("seeds", "Every seed", "seeds.html", data)


def choices(report: Report) -> Section | None:
    """Where learning rates, α, a and b come from."""
    rows = [*_rates(report.lines), *_alphas(report.records), *_fitted(report.records)]
    if not rows:
        return None
    return Section("choices", "What was chosen, and on what", "choices.html", {"rows": rows})


def _rates(lines: Records) -> list[dict[str, str]]:
    mine = [r for r in lines if r["role"] == "validation"]
    rows = []
    for row in in_order(row_of(r) for r in mine):
        own = [r for r in mine if row_of(r) == row]
        taken = {r["seed"]: r["lr"] for r in own if r.get("selected", True)}
        rows.append(
            {
                "method": display(row),
                "what": "learning rate",
                "chosen": _by_seed(taken),
                "among": _among(sorted({r["lr"] for r in own})),
                "on": _each(_on(r["dataset"], r["split"], r["n"]) for r in own),
            }
        )
    return rows


def _alphas(records: Records) -> list[dict[str, str]]:
    mine = [r for r in records if r.get("alpha") is not None and r["role"] in ("id", "ood")]
    rows = []
    for row in in_order(row_of(r) for r in mine):
        own = [r for r in mine if row_of(r) == row]
        tried = sorted({round(r["alpha"], 6) for r in own})
        taken = {r["seed"]: r["alpha"] for r in own if r.get("selected", True)}
        among = _among(tried) if len(tried) > 1 else "given"
        if taken:  # else another strength of theirs was measured, without an α of its own
            rows.append(_row(row, "α", taken, among, own))
    return rows


def _fitted(records: Records) -> list[dict[str, str]]:
    """VRF's a and b, where the lines say them."""
    mine = [r for r in records if "a" in r and "b" in r and r.get("selected", True)]
    rows = []
    for row in in_order(row_of(r) for r in mine):
        own = [r for r in mine if row_of(r) == row]
        for name in ("a", "b"):
            taken = {r["seed"]: r[name] for r in own if r[name] is not None}
            chosen = any(r.get("chosen_on") for r in own)
            rows.append(_row(row, name, taken, "" if chosen else "given", own))
    return rows


def _row(
    row: Row, what: str, taken: Mapping[int, float], among: str, own: Records
) -> dict[str, str]:
    on = _each(_on(**found) for r in own if (found := r.get("chosen_on")))
    untold = any(r.get("chosen_on", {}) is None for r in own)
    return {
        "method": display(row),
        "what": what,
        "chosen": _by_seed(taken),
        "among": among,
        "on": on or ("" if among == "given" else "not told" if untold else _ON),
    }


def _among(values: Sequence[float]) -> str:
    """ "0.1, 0.3, 1", or, of many, "0, 0.1, … 1 (11 values)"."""
    texts = [f"{value:g}" for value in values]
    if len(texts) < 8:
        return ", ".join(texts)
    return f"{texts[0]}, {texts[1]}, … {texts[-1]} ({len(texts)} values)"


def _on(dataset: str, split: str, n: int) -> str:
    return f"{dataset} ({split}), n = {n:,}"


def _by_seed(taken: Mapping[int, Any]) -> str:
    """ "0.6", also of several seeds that agree, or "0.6, 0.5, 0.6 (seeds 0, 1, 2)"."""
    order = sorted(taken)
    values = [f"{taken[seed]:.4g}" for seed in order]
    if len(set(values)) < 2:
        return "".join(values[:1]) or "–"
    return f"{', '.join(values)} (seeds {', '.join(map(str, order))})"


def _each(texts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(texts))
