"""`fog:SET` and `corruptions:SET` wherever a flag takes a test set."""

import json

import numpy as np
import pytest
from PIL import Image

from robustft.cli import named
from robustft.cli.app import run
from robustft.data.corruptions import weather
from robustft.data.corruptions.names import NAMES, Corruption
from tests.layouts import imagenet

TINY = ["--model", "robustft-tiny", "--template", "photo", "--device", "cpu"]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    files = [tmp_path / name for name in weather._FROST]
    for path in files:
        pixels = np.random.default_rng(0).integers(0, 256, (240, 240, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    monkeypatch.setattr(weather, "photographs", lambda: files)


def test_a_set_is_named_with_its_corruption_role_and_name(images):
    folder = str(images)
    for text in (f"fog:{folder}", f"fog-3:{folder}:ood", f"mine=fog:{folder}:ood", folder):
        one = named.parse(text)
        assert one.spec == folder
        assert one.written(one.spec) == text
    assert named.parse(f"mine=fog-2:{folder}").corruption == Corruption("fog", 2)
    every = named.asked_for([], [], [f"x=corruptions-1:{folder}"], [])
    assert [one.corruption for one in every] == [Corruption(name, 1) for name in NAMES]
    assert every[0].name == "x (gaussian-noise-1)"


def test_every_corruption_of_a_folder_is_an_ood_set(images, tmp_path, capsys, photographs):
    others, results = str(images.parent / "others"), tmp_path / "r.jsonl"
    command = ["eval", "--id", others, "--ood", f"corruptions:{others}", *TINY]
    assert run([*command, "--results-db", str(results)]) == 0
    found = lines(results)
    assert [line["role"] for line in found] == ["id"] + ["ood"] * 15
    assert [line.get("corruption") for line in found] == [None, *NAMES]
    assert {line["n"] for line in found[1:]} == {5 * 4}
    assert {line["path"] for line in found[1:]} == {
        f"{name}:{images.parent / 'others'}" for name in NAMES
    }
    for line in found[1:]:
        name = line["dataset"]
        each = line[f"{name}:each-group"]
        assert list(each) == [f"severity {s}" for s in range(1, 6)]
        assert np.mean(list(each.values())) == pytest.approx(line[f"{name}:top1"])
        assert f"{name}:ce" not in line
    mean = np.mean([line[f"{line['dataset']}:top1"] for line in found[1:]])
    printed = capsys.readouterr().out
    assert f"others (corrupted): {100 * mean:.2f}, the mean of 15 corruptions\n" in printed
    report = ["report", "--results-db", str(results), "--out", str(tmp_path / "report")]
    assert run(report) == 0
    assert "| others (corrupted) |" in capsys.readouterr().out


def test_imagenet_made_foggy_has_a_corruption_error(tmp_path):
    imagenet(tmp_path, "imagenet/val", folders=["n01440764", "n01443537"])
    results = tmp_path / "r.jsonl"
    command = [
        "eval",
        "--id",
        "partial:imagenet",
        "--ood",
        "fog:partial:imagenet,fog-1:partial:imagenet",
    ]
    command += ["--data-location", str(tmp_path), *TINY, "--results-db", str(results)]
    assert run(command) == 0
    _, foggy, one = lines(results)
    assert (foggy["dataset"], foggy["n"]) == ("ImageNet (fog)", 10)
    assert foggy["path"] == f"fog:partial:imagenet@{tmp_path}"
    top1 = foggy["ImageNet (fog):top1"]
    assert foggy["ImageNet (fog):ce"] == pytest.approx((1 - top1) / 0.819324)
    assert (one["dataset"], one["n"]) == ("ImageNet (fog 1)", 2)
    assert "corruption" not in one


def test_a_run_keeps_its_corrupted_sets(images, tmp_path, capsys):
    train = ["train", "--method", "ft", "--epochs", "1", "--batch-size", "16", "--warmup", "0"]
    train += ["--data-location", str(images), "--ood", f"contrast-2:{images}", "--aug", "none"]
    train += ["--zero-shot", str(images.parent / "others"), "--logs", str(tmp_path), "--name", "r"]
    assert run([*train, *TINY]) == 0
    again = tmp_path / "again.jsonl"
    assert run(["eval", "--run", str(tmp_path / "r"), "--results-db", str(again)]) == 0
    found = {line["dataset"]: line for line in lines(again)}
    assert found["images (contrast 2)"]["role"] == "ood"
    first = [x for x in lines(tmp_path / "r" / "results.jsonl") if x["method"] == "ft"]
    before = {x["dataset"]: x.get(f"{x['dataset']}:top1") for x in first if x["role"] == "ood"}
    assert before == {
        "images (contrast 2)": found["images (contrast 2)"]["images (contrast 2):top1"]
    }
    capsys.readouterr()
    assert run([*train, *TINY, "--name", "plan", "--dry-run"]) == 0
    assert "ood: 18 images of images (contrast 2)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [("frost:digits", "frost: its photographs are not here"), ("fog-7:digits", "unknown dataset")],
)
def test_what_cannot_be_made_is_one_line(text, message, capsys, monkeypatch):
    monkeypatch.setattr(weather, "_FROST_PACKAGES", ())
    weather.photographs.cache_clear()
    assert run(["eval", "--id", "digits", "--ood", text, *TINY]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
