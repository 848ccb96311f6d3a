"""Segmentation on the command line: evaluation, ensembles, training on masked crops, the report."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from robustft.cli.app import run
from robustft.data import load_dataset
from robustft.data.registry import REGISTRY
from robustft.errors import InputError
from robustft.report import table
from tests import scenes

SET = """
digit-scenes:
  title: Scenes
  reader: regions
  classnames: [zero, one, two, three, four, five, six, seven, eight, nine]
  templates: ["a photo of the digit {}."]
  train: {at: [scenes/train]}
  test: {at: [scenes/test], images: 30, classes: 10}
"""
TINY = ["--model", "robustft-tiny", "--pretrained", "glyphs", "--device", "cpu"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("root")
    scenes.digit_scenes(folder / "scenes", "train", 80)
    scenes.digit_scenes(folder / "scenes", "test", 30, seed=1)
    (folder / "sets.yaml").write_text(SET)
    return folder


@pytest.fixture(autouse=True)
def _as_before(monkeypatch, tmp_path_factory, root):
    list(REGISTRY)
    monkeypatch.setattr(REGISTRY, "_sets", dict(REGISTRY._sets))
    monkeypatch.setattr("robustft.cache.folder", lambda: root / "cache")


def known(root):
    return ["--data-module", str(root / "sets.yaml"), "--data-location", str(root)]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory):
    """A run of R-Adapter on the masked crops of the training scenes."""
    logs = tmp_path_factory.mktemp("logs")
    how = ["--epochs", "5", "--batch-size", "32", "--lr", "5e-3", "--warmup", "0", "--aug", "none"]
    how += ["--ema", "0.9", "--option", "alpha=0.8"]
    with pytest.MonkeyPatch.context() as patch:
        list(REGISTRY)
        patch.setattr(REGISTRY, "_sets", dict(REGISTRY._sets))
        patch.setattr("robustft.cache.folder", lambda: root / "cache")
        command = ["train", "--method", "r-adapter", "--data", "digit-scenes", *known(root), *TINY]
        assert run([*command, *how, "--zero-shot", "inks", "--logs", str(logs)]) == 0
    return logs / "r-adapter-digit-scenes-0"


def test_training_on_masked_crops_raises_the_miou(trained):
    found = {
        line["method"]: line for line in lines(trained / "results.jsonl") if line["role"] == "id"
    }
    before, after = found["zero-shot"], found["r-adapter"]
    assert before["n"] == after["n"] == 120, "four regions in each of 30 scenes"
    assert after["Scenes:miou"] > before["Scenes:miou"] + 0.1
    for line in found.values():
        # The regions are the ground truth's own, of one size: what is right is right as a whole.
        assert line["Scenes:pixel-accuracy"] == pytest.approx(line["Scenes:top1"])
        assert len(line["Scenes:iou"]) == 10
        assert line["Scenes:miou"] == pytest.approx(np.mean(line["Scenes:iou"]))


def test_the_zero_shot_model_is_evaluated_by_name(root, tmp_path, trained, capsys):
    results = tmp_path / "r.jsonl"
    command = ["eval", "--eval-datasets", "digit-scenes", *known(root), *TINY]
    assert run([*command, "--results-db", str(results)]) == 0
    printed = capsys.readouterr().out
    assert "Scenes: id (the training data's own), 120 regions of 30 images" in printed
    assert "zero-shot  Scenes: mIoU " in printed
    assert ", pixel-accuracy " in printed
    (line,) = lines(results)
    of_run = next(x for x in lines(trained / "results.jsonl") if x["method"] == "zero-shot")
    assert line["Scenes:miou"] == of_run["Scenes:miou"]


def test_a_run_at_strengths_and_every_ensemble_is_measured_by_its_maps(trained, capsys):
    assert run(["eval", "--run", str(trained), "--alpha", "0,1"]) == 0
    assert run(["wise-ft", "--run", str(trained), "--alpha", "0,1"]) == 0
    assert run(["ose", "--run", str(trained), "--alpha", "0,0.5,1"]) == 0
    assert run(["vrf", "--run", str(trained), "--a", "1.5", "--b", "0.6"]) == 0
    found = [x for x in lines(trained / "results.jsonl") if "Scenes:miou" in x]
    by_name = {(x["method"], x["alpha"]): x["Scenes:miou"] for x in found}
    zero_shot = by_name["zero-shot", None]
    for method in ("r-adapter", "wise-ft", "ose"):
        assert by_name[method, 0.0] == pytest.approx(zero_shot), method
    assert by_name["wise-ft", 1.0] == pytest.approx(by_name["r-adapter", None])
    assert by_name["ose", 1.0] == pytest.approx(by_name["r-adapter", None])
    assert ("vrf", None) in by_name
    written = table(found)
    assert f"{100 * zero_shot:.1f}" in written, "tables show the mIoU"


def test_the_suite_of_three_sets_takes_the_masks_of_a_proposer(tmp_path):
    scenes.registered(tmp_path)
    results = tmp_path / "r.jsonl"
    verb = ["eval", "--suite", "partial:segmentation", "--data-location", str(tmp_path), *TINY]
    assert run([*verb, "--template", "photo", "--results-db", str(results)]) == 0
    found = {line["dataset"]: line for line in lines(results)}
    classes = {name: len(line[f"{name}:iou"]) for name, line in found.items()}
    assert classes == {"ADE20K-150": 150, "Pascal Context-59": 59, "Pascal VOC-20": 20}
    for name, line in found.items():
        assert (line["role"], line["n"]) == ("forgetting", 9), "three masks of three images"
        there = [label for label, value in enumerate(line[f"{name}:iou"]) if value is not None]
        assert there == [0, 1]


@pytest.mark.slow
def test_two_processes_and_workers_say_what_one_process_does(root, tmp_path):
    verb = ["eval", "--eval-datasets", "digit-scenes", *known(root), *TINY, "--batch-size", "16"]
    spread = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
    said = []
    for name, before, more in (("one", [], []), ("two", spread, ["--workers", "1"])):
        results = tmp_path / f"{name}.jsonl"
        command = [sys.executable, *before, "-m", "robustft", *verb, *more]
        subprocess.run([*command, "--results-db", str(results)], check=True, timeout=300)
        said += [{k: v for k, v in x.items() if k != "samples"} for x in lines(results)]
    assert said[0] == said[1]
    assert len(said) == 2


def test_a_table_of_masks_and_categories_is_training_data(root, tmp_path):
    REGISTRY.register_file(root / "sets.yaml")
    whole = load_dataset(f"digit-scenes@{root}", "test")
    rows = [
        f"{whole.crops.pictures[n]},{whole.crops.masks[n]},{whole.crops.numbers[n]},"
        f"{whole.classnames[int(whole.labels[n])]}"
        for n in range(len(whole))
    ]
    path = tmp_path / "pairs.csv"
    path.write_text("\n".join(["path,mask,region,category", *rows]))
    parts = [load_dataset(path, split) for split in ("train", "val")]
    assert sum(map(len, parts)) == len(whole)
    data = parts[0]
    assert data.classnames == sorted(whole.classnames)
    same = whole.crops.pictures.index(data.images.pictures[5])
    number = next(
        n for n in range(same, len(whole)) if whole.crops.numbers[n] == data.images.numbers[5]
    )
    assert np.array_equal(np.asarray(data[5]["image"]), np.asarray(whole[number]["image"]))
    assert data.classnames[data[5]["label"]] == whole.classnames[int(whole.labels[number])]


def test_a_table_without_regions_takes_all_that_is_not_black(tmp_path):
    Image.fromarray(np.full((6, 8, 3), 200, dtype=np.uint8)).save(tmp_path / "i.png")
    mask = np.zeros((6, 8), dtype=np.uint8)
    mask[1:3, 2:6] = 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    np.savez(tmp_path / "m.npz", masks=np.stack([mask > 0, mask > 300]))
    path = tmp_path / "x-test.csv"
    path.write_text("path,mask,category\ni.png,m.png,b\ni.png,m.png,a\n")
    data = load_dataset(path, "test")
    assert data.classnames == ["a", "b"]
    assert data.labels.tolist() == [1, 0]
    assert data[0]["image"].size == (4, 4)
    for row, message in (
        ("i.png,m.npz,,a", "got the mask number -1, expected one of its 2"),
        ("i.png,m.npz,2,a", "got the mask number 2, expected one of its 2"),
        ("i.png,m.npz,1,a", "mask 1 is empty"),
        ("i.png,,1,a", "line 2: got the mask '' and the region '1'"),
        ("i.png,m.npz,x,a", "the region 'x'"),
    ):
        path.write_text(f"path,mask,region,category\n{row}\n")
        with pytest.raises(InputError, match=message):
            load_dataset(path, "test")[0]
    (tmp_path / "classnames.txt").write_text("a\n")
    path.write_text("path,category\ni.png,b\n")
    with pytest.raises(InputError, match="line 2: got the category 'b', expected a class name"):
        load_dataset(path, "test")
