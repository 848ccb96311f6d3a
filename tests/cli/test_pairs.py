"""Ensembles of any two checkpoints: the same lines as of the run that they come from."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from robustft.cli.app import run
from robustft.ensemble import VRF
from robustft.models import load_clip

MODEL = ("--model", "robustft-tiny")


def quietly(arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return run([str(a) for a in arguments])


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """A few images of other classes."""
    root = tmp_path_factory.mktemp("others")
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for n in range(3):
                Image.effect_noise((24, 24), 40 + n).save(root / split / name / f"{n}.png")
    return root


@pytest.fixture(scope="module")
def tuned(images, others, tmp_path_factory):
    """A run of FT, whose head is its own, and one of FLYP, whose text tower gives it."""
    logs = tmp_path_factory.mktemp("logs")
    for method in ("ft", "flyp"):
        arguments = [
            *("train", "--method", method, *MODEL, "--pretrained", "glyphs"),
            *("--data-location", images, "--epochs", "2", "--batch-size", "8", "--lr", "1e-3"),
            *("--logs", logs, "--name", method, "--aug", "none", "--zero-shot", others),
        ]
        assert quietly(arguments) == 0
    return logs


def lines_of(path):
    found = [json.loads(line) for line in path.read_text().splitlines()]
    files = ("base", "samples", "model", "pretrained")  # which of them the models came from
    return [{k: v for k, v in line.items() if k not in files} for line in found]


@pytest.mark.parametrize("verb", ["wise-ft", "ose", "vrf"])
@pytest.mark.parametrize("method", ["ft", "flyp"])
def test_a_pair_of_files_gives_what_its_run_gives(tuned, images, others, tmp_path, verb, method):
    more = ["--alpha", "0,0.5,1"] if verb != "vrf" else ["--a", "1.5", "--b", "0.6"]
    sets = ["--id", images, "--zero-shot", others]
    one, two = tmp_path / "run.jsonl", tmp_path / "pair.jsonl"
    folder = tuned / method
    assert quietly([verb, "--run", folder, *sets, *more, "--results-db", one]) == 0
    pair = ["--zeroshot", "glyphs", "--finetuned", folder / "model.safetensors", *MODEL]
    at = ["--data-location", images, "--out", tmp_path / "out", "--batch-size", "8"]
    if method == "flyp":  # as a plain checkpoint, whose head is made anew
        plain = tmp_path / "flyp.pt"
        state = load_file(folder / "model.safetensors")
        state = {k.removeprefix("clip."): v for k, v in state.items() if k.startswith("clip.")}
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, plain)
        pair[3] = plain
    assert quietly([verb, *pair, *at, *sets, *more, "--results-db", two]) == 0
    assert lines_of(two) == lines_of(one)
    assert lines_of(tmp_path / "out" / "results.jsonl") == lines_of(one)
    base = {json.loads(line).get("base") for line in two.read_text().splitlines()}
    assert base == {"model" if method == "ft" else "flyp"}


def test_soup(tuned, images, tmp_path, capsys):
    files = [tuned / m / "model.safetensors" for m in ("ft", "flyp")]
    out = tmp_path / "out"
    common = ["soup", "--finetuned", f"{files[0]},{files[1]}", *MODEL, "--out", out]
    common += ["--data-location", images, "--id", images]
    assert quietly([*common, "--no-greedy"]) == 0
    made = load_file(out / "soup.safetensors")
    parts = [load_file(file) for file in files]
    name = "clip.visual.trunk.blocks.0.attn.qkv.weight"
    torch.testing.assert_close(made[name], (parts[0][name] + parts[1][name]) / 2)
    assert quietly(common) == 0
    assert "of 2 models" in capsys.readouterr().out
    found = [line["method"] for line in lines_of(out / "results.jsonl")]
    assert found == ["uniform-soup", "greedy-soup"]


def without_text(tuned, tmp_path):
    """A classifier as WiSE-FT saves it: no text transformer."""
    path = tmp_path / "checkpoint_10.pt"
    state = load_file(tuned / "ft" / "model.safetensors")
    names = {"clip": "image_encoder.model", "head": "classification_head"}
    tensors = {
        f"{names[k.partition('.')[0]]}.{k.partition('.')[2]}": v
        for k, v in state.items()
        if not k.startswith("clip.transformer.")
    }
    torch.save(tensors, path)
    return path


def test_files_without_a_text_tower(tuned, images, others, tmp_path, capsys):
    path = without_text(tuned, tmp_path)
    out = tmp_path / "out"
    common = ["vrf", "--zeroshot", "glyphs", "--finetuned", path, *MODEL, "--out", out]
    common += ["--data-location", images]
    assert quietly(common) == 0
    said = capsys.readouterr().out
    assert "its head does not name its classes" in said
    assert {x["role"] for x in lines_of(out / "results.jsonl")} <= {"id", "ratio"}
    assert quietly([*common, "--zero-shot", others]) == 2
    assert "has other classes" in capsys.readouterr().err
    assert not load_clip("robustft-tiny", path, image_only=True).has_text


def test_p_and_k_are_swept(tuned, images, tmp_path):
    common = ["vrf", "--run", tuned / "ft", "--id", images, "--a", "1.5", "--b", "0.6"]
    out = tmp_path / "sweep.jsonl"
    assert quietly([*common, "--k", "1,2", "--k", "3", "--results-db", out]) == 0
    lines = [line for line in lines_of(out) if line["role"] == "id"]
    assert [line["k"] for line in lines] == sorted({line["k"] for line in lines})
    assert sum(line["selected"] for line in lines) == 1
    for line in lines:
        alone = tmp_path / f"{line['k']}.jsonl"
        assert quietly([*common, "--k", line["k"], "--results-db", alone]) == 0
        again = next(x for x in lines_of(alone) if x["role"] == "id")
        name = line["dataset"]
        assert again[f"{name}:top1"] == line[f"{name}:top1"]
        assert again[f"{name}:ece"] == line[f"{name}:ece"]


def test_as_released(tuned, images, tmp_path, capsys):
    out = tmp_path / "released.jsonl"
    common = ["vrf", "--run", tuned / "ft", "--id", images, "--results-db", out]
    assert quietly([*common, "--as-released"]) in (0, 2)  # its search may find no temperature
    capsys.readouterr()
    assert quietly([*common, "--as-released", "--no-calibrate"]) == 0
    said = capsys.readouterr().out
    assert "a=1.5, b=0.6" in said
    line = [x for x in lines_of(out) if x["role"] == "id"][-1]
    assert line["method"] == "vrf-as-released"
    assert VRF.load(tuned / "ft" / "vrf.safetensors").as_released
    assert quietly([*common, "--as-released", "--k", "3"]) == 2
    assert "expected neither: it has its own" in capsys.readouterr().err


def test_features_of_the_zero_shot_model(tuned, images, tmp_path):
    out = tmp_path / "features.jsonl"
    common = ["vrf", "--run", tuned / "ft", "--id", images, "--a", "1.5", "--b", "0.6"]
    assert quietly([*common, "--features", "zeroshot", "--results-db", out]) == 0
    assert lines_of(out)[0]["method"] == "vrf-zeroshot-features"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ose"], "--run: got nothing, expected the folder of a training run, or --zeroshot"),
        (["vrf", "--zeroshot", "glyphs"], "--finetuned: got nothing"),
        (["vrf", "--zeroshot", "glyphs", "--finetuned", "x"], "--data-location: got nothing"),
        (["ose", "--run", "x", "--model", "y"], "--model: got 'y' beside --run"),
        (["wise-ft", "--feature-store", "on"], "--feature-store: got it with --space weights"),
        (["soup", "--data-location", "digits"], "--finetuned: got nothing"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("robustft: ")


def test_a_head_of_other_classes_is_refused(tuned, images, tmp_path, capsys):
    pair = ["--zeroshot", "glyphs", "--finetuned", tuned / "ft" / "model.safetensors", *MODEL]
    assert quietly(["ose", *pair, "--data-location", "digits", "--out", tmp_path / "x"]) == 2
    assert "--finetuned: classnames: got 10, expected 3 as in the head" in capsys.readouterr().err


def test_features_are_computed_once(tuned, images, others, tmp_path, monkeypatch):
    """The second command computes none of the features."""
    store, results = tmp_path / "store", [tmp_path / f"{n}.jsonl" for n in range(3)]
    common = ["--run", tuned / "ft", "--id", images, "--zero-shot", others]
    vrf = ["vrf", *common, "--a", "1.5", "--b", "0.6"]
    assert quietly([*vrf, "--results-db", results[0]]) == 0
    kept = ["--feature-store", store]
    assert quietly([*vrf, *kept, "--results-db", results[1]]) == 0
    assert list(store.glob("image-*/*.safetensors"))
    from robustft.features import encode

    calls = []
    load = encode.load_ranges

    def counted(dataset, ranges, workers=0):
        for rows, pictures in load(dataset, ranges, workers):
            calls.append(dataset.name)
            yield rows, pictures

    monkeypatch.setattr(encode, "load_ranges", counted)
    assert quietly([*vrf, *kept, "--results-db", results[2]]) == 0
    assert calls == []
    assert lines_of(results[2]) == lines_of(results[1])
    for one, two in zip(lines_of(results[0]), lines_of(results[1]), strict=True):
        name = one.get("dataset")
        if one["role"] != "ratio":
            assert one[f"{name}:top1"] == two[f"{name}:top1"]
            assert one[f"{name}:ece"] == pytest.approx(two[f"{name}:ece"], abs=1e-5)


def test_what_is_warned_of_is_one_line(tuned, images, capsys):
    """At chance no temperature helps."""
    common = ["--run", tuned / "ft", "--id", images, "--alpha", "0.5"]
    assert run([str(a) for a in ["ose", *common, "--calibrate"]]) == 0
    said = [x for x in capsys.readouterr().err.splitlines() if "no temperature" in x]
    assert said, "the zero-shot model is at chance on stripes"
    assert all(line.startswith("robustft: no temperature makes") for line in said)
