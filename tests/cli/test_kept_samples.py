"""Every verb that evaluates leaves samples, whose top-1 by NumPy is the line's."""

import json

import pytest
from safetensors.numpy import load_file

from robustft.cli.app import run

FIXED = ("--model", "robustft-tiny", "--pretrained", "glyphs", "--device", "cpu")
ROLES = ("id", "ood", "forgetting")


def measured(path):
    """(method, α) of the lines that have samples, each checked against its file by NumPy."""
    found = []
    for text in path.read_text().splitlines():
        line = json.loads(text)
        if line["role"] not in ROLES or not line["selected"]:
            assert "samples" not in line
            continue
        columns = load_file(path.parent / line["samples"])
        right = columns["label"] == columns["predicted"]
        assert len(right) == line["n"]
        assert right.mean() == pytest.approx(line[f"{line['dataset']}:top1"], abs=1e-12)
        found.append((line["method"], line["alpha"]))
    return found


def test_every_verb(images, tmp_path, capsys):
    sets = ("--data-location", str(images), "--id", str(images))
    sets += ("--zero-shot", str(images.parent / "others"))
    for number, lr in enumerate(("1e-3", "3e-3")):
        budget = ("--epochs", "1", "--batch-size", "8", "--lr", lr, "--warmup", "0")
        where = ("--logs", str(tmp_path), "--name", f"run{number}", "--aug", "none")
        assert run(["train", "--method", "ft", *FIXED, *sets, *budget, *where]) == 0
    run0 = tmp_path / "run0"
    assert measured(run0 / "results.jsonl") == [("zero-shot", None)] * 2 + [("ft", None)] * 2
    verbs = {
        ("eval",): [("ft", None)],
        ("eval", "--alpha", "0,0.5,1"): [("wise-ft", 1.0)],
        ("wise-ft", "--alpha", "0.5"): [("wise-ft", 0.5)],
        ("ose", "--alpha", "0.25"): [("ose", 0.25)],
        ("ose", "--alpha", "0.25", "--space", "logits", "--calibrate"): [("calibrated-lse", 0.25)],
        ("vrf", "--k", "1,2"): [("vrf", None)],
    }
    for number, (verb, expected) in enumerate(verbs.items()):
        results = tmp_path / f"db{number}" / "all.jsonl"
        common = ("--run", str(run0), "--results-db", str(results))
        assert run([verb[0], *common, *verb[1:]]) == 0
        found = measured(results)
        assert {method for method, _ in found} == {expected[0][0]}
        assert len(found) == 2
        if "0,0.5,1" not in verb:
            assert found == expected * 2
    models = [str(tmp_path / f"run{i}" / "model.safetensors") for i in (0, 1)]
    pair = (*FIXED[:2], *FIXED[4:], *sets, "--out", str(tmp_path / "soup"))
    assert run(["soup", "--finetuned", models[0], "--finetuned", models[1], *pair]) == 0
    assert measured(tmp_path / "soup" / "results.jsonl") == [("greedy-soup", None)] * 2
    zero = ("--results-db", str(tmp_path / "zs" / "r.jsonl"), *sets)
    assert run(["eval", *FIXED, *zero]) == 0
    assert measured(tmp_path / "zs" / "r.jsonl") == [("zero-shot", None)] * 2
