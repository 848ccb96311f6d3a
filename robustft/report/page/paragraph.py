"""The Methods paragraph: what was done, in sentences that can be pasted into a paper."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from robustft.evaluate.results import ACCURACIES, headline_name
from robustft.report.names import Row, display, family, group, in_order, row_of
from robustft.report.page.section import Records, Report, Section
from robustft.report.page.sizes import listed, named, sizes

#: The papers of methods and measures (arXiv), as in docs/methods.
PAPERS = {
    "zero-shot": "2103.00020",
    "ft": "2109.01903",
    "lp-ft": "2202.10054",
    "flyp": "2212.00638",
    "l2-sp": "1802.01483",
    "car-ft": "2211.16175",
    "lipsum-ft": "2404.00860",
    "starft": "2505.13232",
    "snd": "2403.09296",
    "flyp-snd": "2511.09973",
    "flyp-replay": "2511.09973",
    "tpgm": "2303.10720",
    "dive": "2511.09973",
    "r-adapter": "2408.05749",
    "wise-ft": "2109.01903",
    "ose": "2411.06966",
    "calibrated-ose": "2411.06966",
    "lse": "2411.06966",
    "calibrated-lse": "2411.06966",
    "uniform-soup": "2203.05482",
    "greedy-soup": "2203.05482",
    "post-tpgm": "2303.10720",
    "vrf": "2411.06966",
}
_RSA = "2511.09973"


def section(report: Report) -> Section:
    data = {"sentences": sentences(report.lines, report.records)}
    return Section("methods", "Methods paragraph", "paragraph.html", data, folded=False)


def sentences(lines: Records, records: Records) -> list[str]:
    """lines: with those of the role "validation"; records: those that measure."""
    said = [
        _models(records),
        _sets(records),
        _geometry(records),
        _choices(lines, records),
        _spread(records),
    ]
    return [text for text in said if text]


def _models(records: Records) -> str:
    rows = in_order(row_of(r) for r in records if r["role"] != "ratio")
    single = [row for row in rows if group(row) != "ensembles" and row[0] != "zero-shot"]
    mixed = [row for row in rows if group(row) == "ensembles"]
    began = ("zero-shot", None) in rows
    models = {_model(r) for r in records if r.get("model")}
    what = f"the pre-trained {listed(sorted(models))}" if models else "a pre-trained CLIP model"
    parts = []
    if single:
        parts.append(f"We fine-tuned {what} with {listed(map(_cited, single))}")
    elif began:
        parts.append(f"We evaluated {what} zero-shot [{_arxiv('zero-shot')}]")
    if mixed:
        parts.append(
            f"combined the pre-trained and fine-tuned models by {listed(map(_cited, mixed))}"
        )
    text = " and ".join(parts)
    if single and began:
        text += f"; the zero-shot model [{_arxiv('zero-shot')}] is the reference"
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _model(record: Mapping[str, Any]) -> str:
    """ "ViT-B-16 (openai)"; weights that are a file go without its path."""
    tag = record.get("pretrained")
    known = tag and not re.search(r"[\\/.]", tag)
    return f"{record['model']} ({tag})" if known else str(record["model"])


def _sets(records: Records) -> str:
    parts = []
    if sizes(records, ("id",)):
        parts.append(f"in-distribution accuracy on {named(records, ('id',))}")
    outside = sizes(records, ("ood",))
    if outside:
        mean = "the unweighted mean over " if len(outside) > 1 else ""
        parts.append(f"robustness as {mean or 'accuracy on '}{named(records, ('ood',), 12)}")
    if sizes(records, ("forgetting",)):
        parts.append(
            "forgetting as zero-shot accuracy on classes that were not trained, "
            f"{named(records, ('forgetting',), 12)}"
        )
    measures = listed(
        dict.fromkeys(
            headline_name(r) or "top-1 accuracy" for r in records if r["role"] in ACCURACIES
        )
    )
    return f"We report {measures}: {'; '.join(parts)}." if parts else ""


def _geometry(records: Records) -> str:
    text = []
    if any(any(key.endswith(":ece") for key in r) for r in records):
        text.append("Calibration is the expected calibration error over 15 equal-width bins.")
    if any(r["role"] == "geometry" for r in records):
        text.append(
            "RSA is the correlation of the Euclidean distances between image features before and "
            f"after fine-tuning [arXiv:{_RSA}]."
        )
    return " ".join(text)


def _choices(lines: Records, records: Records) -> str:
    """What was chosen, on what; never more than the lines say."""
    text = []
    tried = [r for r in lines if r["role"] == "validation"]
    if tried:
        rates = listed(f"{lr:g}" for lr in sorted({r["lr"] for r in tried}))
        on = named(tried, ("validation",))
        text.append(
            f"Learning rates were chosen among {rates} by accuracy on the in-distribution "
            f"validation split of {on}."
        )
    untold = {row_of(r) for r in records if r.get("chosen_on", {}) is None}
    curves = {row_of(r) for r in _with_alpha(records)} - untold
    swept = {row for row in curves if _alphas(records, row) > 1}
    fitted = {row_of(r) for r in records if "a" in r and r.get("chosen_on")}
    what = [f"α of {listed(map(display, in_order(swept)))}"] if swept else []
    what += [f"a and b of {listed(map(display, in_order(fitted)))}"] if fitted else []
    if what:
        chose = [
            dict(r["chosen_on"]) | {"role": "validation"} for r in records if r.get("chosen_on")
        ]
        where = "in-distribution validation data"
        if chose:
            where = f"the validation split of {named(chose, ('validation',))}"
        text.append(f"{listed(what)} were chosen by accuracy on {where}.")
    return " ".join(text)


def _spread(records: Records) -> str:
    seeds = sorted({r["seed"] for r in records})
    if len(seeds) > 1:
        every = ", ".join(map(str, seeds))
        return f"Numbers are means ± sample standard deviations over {len(seeds)} seeds ({every})."
    known = any(sizes(records, ("id", "ood", "forgetting")).values())
    intervals = "; intervals are Wilson's at 95 %" if known else ""
    return f"Numbers are of one seed ({seeds[0]}){intervals}."


def _with_alpha(records: Records) -> list[dict[str, object]]:
    return [dict(r) for r in records if r["role"] != "ratio" and r.get("alpha") is not None]


def _alphas(records: Records, row: Row) -> int:
    return len({round(r["alpha"], 6) for r in _with_alpha(records) if row_of(r) == row})  # type: ignore[call-overload]


def _cited(row: Row) -> str:
    paper = PAPERS.get(row[0]) or PAPERS.get(family(row[0]))
    return display(row) if paper is None else f"{display(row)} [arXiv:{paper}]"


def _arxiv(method: str) -> str:
    return f"arXiv:{PAPERS[method]}"
