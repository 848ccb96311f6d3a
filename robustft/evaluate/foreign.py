"""Results that other programs left: WiSE-FT's results.jsonl and CLIP_benchmark's JSON.

They say less than ours: `n` is null where the number of samples is not told, and the role of a data
set is taken from what its program is for.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from robustft import jsonlines
from robustft.errors import InputError
from robustft.evaluate import samples
from robustft.evaluate.results import check_result
from robustft.evaluate.retrieval import AT, MEAN

# What CLIP_benchmark calls ImageNet and its shifts; its other sets have classes of their own.
_ROLES = {"imagenet1k": "id"} | dict.fromkeys(
    ("imagenetv2", "imagenet-a", "imagenet-r", "imagenet_sketch", "objectnet"), "ood"
)
#: CLIP_benchmark's names of measures, of classification and of retrieval; there, images are what is
#: found by a text.
METRICS = {"acc1": "top1", "acc5": "top5", "mean_per_class_recall": "mean-per-class"}
RECALLS = {
    f"{what}_retrieval_recall@{k}": f"{way}-R@{k}"
    for what, way in (("text", "image-to-text"), ("image", "text-to-image"))
    for k in AT
}
# WiSE-FT's, with those of WILDS.
_MEASURES = {"top1": "top1", "F1-macro_all": "macro-f1", "acc_worst_region": "worst-group"}
_OWN = ("role", "split", "method", "base", "alpha", "seed", "n")
_UNTOLD = {"split": "test", "base": None, "alpha": None, "selected": True, "seed": 0, "n": None}

Record = dict[str, Any]


def read_any(path: str | Path) -> list[Record]:
    """Our records of a file of result lines: ours, WiSE-FT's or CLIP_benchmark's.

    A line of WiSE-FT's interpolation is a point of the method wise-ft; that at α = 0 is also the
    zero-shot model and that at α = 1 also the method ft. Another line goes by its experiment's
    name, else its model's. Reported is the only point there is, or α = 0.5, which WiSE-FT takes
    where there is nothing to choose by. Its training set is ID. A model of CLIP_benchmark is a
    method of that name; ImageNet is ID, its shifts are OOD, and other data sets show what was
    forgotten, by top-1 or by retrieval.

    Errors: OSError, or InputError naming the file and the line.
    """
    lines = list(jsonlines.read(path))
    alphas = {a for _, value in lines if _is_wise_ft(value) and (a := _alpha(value)) is not None}
    reported = alphas.pop() if len(alphas) == 1 else 0.5
    records: list[Record] = []
    for number, value in lines:
        try:
            if _is_wise_ft(value):
                found = _of_wise_ft(value, Path(path).stem, reported)
                records += [check_result(record) for record in found]
            elif _is_clip_benchmark(value):
                records.append(check_result(_of_clip_benchmark(value)))
            else:
                records.append(samples.located(check_result(value), Path(path).parent))
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error}") from error
    return records


def _is_wise_ft(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and "role" not in value
        and any(key.endswith(":top1") for key in value)
    )


def _is_clip_benchmark(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("metrics"), dict)


def _alpha(value: Record) -> float | None:
    """α of an interpolation; a single model's line has the list that was asked for, or null."""
    alpha = value.get("alpha")
    return float(alpha) if isinstance(alpha, int | float) else None


def _of_wise_ft(value: Record, name: str, reported: float) -> list[Record]:
    sets = [key.removesuffix(":top1") for key in value if key.endswith(":top1")]
    trained = value.get("train_dataset")
    home = next((x for x in (trained, "ImageNet") if x in sets), sets[0])
    alpha = _alpha(value)
    who: list[Record] = [{"method": str(value.get("exp_name") or value.get("model") or name)}]
    if alpha is not None:
        at = {"alpha": alpha, "selected": alpha == reported, "chosen_on": None}
        who = [{"method": "wise-ft", **at}]
        who += [{"method": x} for end, x in ((0.0, "zero-shot"), (1.0, "ft")) if alpha == end]
    return [
        {
            **_UNTOLD,
            **one,
            "dataset": dataset,
            "role": "id" if dataset == home else "ood",
            **{
                f"{dataset}:{measure}": value[f"{dataset}:{key}"]
                for key, measure in _MEASURES.items()
                if f"{dataset}:{key}" in value
            },
        }
        for one in who
        for dataset in sets
    ]


def _of_clip_benchmark(value: Record) -> Record:
    for key in ("dataset", "model", "pretrained"):
        if not isinstance(value.get(key), str):
            raise InputError(f"{key}: got {value.get(key)!r}, expected a name")
    metrics, name = value["metrics"], value["dataset"].removeprefix("wds/")
    more: Record = {}
    if "acc1" not in metrics:
        if not all(isinstance(metrics.get(key), int | float) for key in RECALLS):
            raise InputError(
                f"metrics: got {', '.join(map(str, metrics))}, expected acc1, or of retrieval the "
                "recall both ways at 1, 5 and 10: of CLIP_benchmark's tasks no other is read"
            )
        mean = statistics.fmean(metrics[key] for key in RECALLS)
        more = {"captions": value.get("captions"), f"{name}:{MEAN}": mean}
    return {
        **_UNTOLD,
        "method": f"{value['model']} {value['pretrained']}".strip(),
        "role": _ROLES.get(name, "forgetting"),
        **{key: value[key] for key in _OWN if key in value},
        "dataset": name,
        **{
            f"{name}:{measure}": metrics[key]
            for key, measure in (METRICS | RECALLS).items()
            if key in metrics
        },
        **more,
    }
