"""Results of other programs, in the layout in which they leave them."""

import json

import pytest

from robustft.errors import InputError
from robustft.evaluate import append_result
from robustft.evaluate.foreign import read_any


def wise_ft(alpha, inside, outside, **more):
    """A line as WiSE-FT's evaluation appends: its arguments, then the accuracies."""
    return {
        "data_location": "/data",
        "eval_datasets": ["ImageNet", "ImageNetV2"],
        "train_dataset": "ImageNet",
        "alpha": alpha,
        "exp_name": None,
        "model": "ViT-B/32",
        "load": ["zeroshot.pt", "checkpoint_10.pt"],
        "ImageNet:top1": inside,
        "ImageNetV2:top1": outside,
        **more,
    }


def write(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_wise_ft_s_interpolation_is_a_curve_with_its_ends(tmp_path):
    lines = [wise_ft(0.0, 0.63, 0.56), wise_ft(0.5, 0.76, 0.66), wise_ft(1.0, 0.75, 0.63)]
    found = read_any(write(tmp_path / "results.jsonl", *lines))
    top1 = {
        (r["method"], r["alpha"], r["role"]): (r[f"{r['dataset']}:top1"], r["selected"])
        for r in found
    }
    assert top1 == {
        ("wise-ft", 0.0, "id"): (0.63, False),
        ("wise-ft", 0.0, "ood"): (0.56, False),
        ("zero-shot", None, "id"): (0.63, True),
        ("zero-shot", None, "ood"): (0.56, True),
        ("wise-ft", 0.5, "id"): (0.76, True),
        ("wise-ft", 0.5, "ood"): (0.66, True),
        ("wise-ft", 1.0, "id"): (0.75, False),
        ("wise-ft", 1.0, "ood"): (0.63, False),
        ("ft", None, "id"): (0.75, True),
        ("ft", None, "ood"): (0.63, True),
    }
    assert {r["n"] for r in found} == {None}
    (only,) = {r["selected"] for r in read_any(write(tmp_path / "r", wise_ft(0.7, 0.7, 0.6)))}
    assert only, "one strength is the one that was chosen"


def test_a_single_model_of_wise_ft_goes_by_its_experiment_or_model(tmp_path):
    lines = [wise_ft([0.5], 0.7, 0.6), wise_ft(None, 0.8, 0.5, exp_name="probe")]
    lines[1] |= {"IWildCamOOD:top1": 0.7, "IWildCamOOD:F1-macro_all": 0.4}
    lines[1] |= {"FMOWOOD:top1": 0.6, "FMOWOOD:acc_worst_region": 0.3}
    found = read_any(write(tmp_path / "vanilla.jsonl", *lines))
    assert [r["method"] for r in found] == ["ViT-B/32"] * 2 + ["probe"] * 4
    assert found[4]["IWildCamOOD:macro-f1"] == 0.4
    assert found[5]["FMOWOOD:worst-group"] == 0.3


def test_clip_benchmark_s_json(tmp_path):
    names = {"imagenet1k": "id", "wds/imagenetv2": "ood", "vtab/caltech101": "forgetting"}
    metrics = {"acc1": 0.6, "acc5": float("nan"), "mean_per_class_recall": 0.59}
    for number, (name, role) in enumerate(names.items()):
        one = {"dataset": name, "model": "ViT-B-32", "pretrained": "openai"}
        one |= {"task": "zeroshot_classification", "metrics": metrics, "language": "en"}
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(one))  # one object, no line end, NaN and all
        (found,) = read_any(path)
        own = name.removeprefix("wds/")
        assert (found["role"], found["method"], found["n"]) == (role, "ViT-B-32 openai", None)
        assert (found[f"{own}:top1"], found[f"{own}:top5"]) == (0.6, None)
        assert found[f"{own}:mean-per-class"] == 0.59


def test_our_own_lines_pass_and_others_are_refused_by_line(tmp_path):
    own = {"dataset": "D", "role": "id", "split": "test", "method": "ft", "seed": 0, "n": 3}
    append_result(tmp_path / "own.jsonl", {**own, "D:top1": 1.0})
    assert read_any(tmp_path / "own.jsonl")[0]["D:top1"] == 1.0
    task = {"dataset": "flickr30k", "model": "m", "pretrained": "p", "task": "zeroshot_retrieval"}
    for bad, message in (
        ({"acc": 1}, "role: got None"),
        (["a"], "record: got list"),
        (wise_ft(0.5, 63.0, 0.5), "ImageNet:top1: got 63.0"),
        ({**task, "metrics": {"image_retrieval_recall@5": 0.5}}, "expected acc1"),
        ({**task, "model": 3, "metrics": {"acc1": 0.5}}, "model: got 3"),
    ):
        path = write(tmp_path / "bad.jsonl", wise_ft(0.5, 0.6, 0.5), bad)
        with pytest.raises(InputError, match=f"bad.jsonl, line 2: .*{message}"):
            read_any(path)
