"""Image–text retrieval from the command line: zero-shot, training on pairs, strengths, refusals."""

import json
import os
import shutil
import subprocess
import sys
import warnings

import pytest
import torch
from safetensors.torch import load_file

from robustft.cli.app import run
from robustft.cli.runs import open_run
from robustft.data import load_dataset
from robustft.errors import InputError
from robustft.evaluate.retrieval import MEASURES, retrieve
from robustft.methods import METHODS, make_method
from robustft.models.classifier_file import classifier_metadata
from robustft.train import TrainConfig, Trainer
from tests.layouts import captioned_glyphs

TINY = ["--model", "robustft-tiny", "--pretrained", "glyphs", "--device", "cpu"]
PAIRS = [name for name, method in METHODS.items() if method.takes_pairs and name != "zero-shot"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("root")
    captioned_glyphs(folder, "coco", {"train": 20, "restval": 10, "val": 12, "test": 30})
    captioned_glyphs(folder, "flickr30k", {"train": 8, "val": 4, "test": 25}, each=2)
    return folder


@pytest.fixture(autouse=True)
def _quiet(tmp_path, monkeypatch):
    monkeypatch.setattr("robustft.cache.folder", lambda: tmp_path / "cache")
    warnings.simplefilter("ignore")  # of counts: the sets are partial


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def training(root, logs, method, *more):
    data = ["--data", "partial:coco", "--data-location", str(root), "--ood", "partial:flickr30k"]
    short = ["--epochs", "2", "--batch-size", "16", "--warmup", "0", "--aug", "none"]
    where = ["--logs", str(logs), "--name", method]
    return ["train", "--method", method, *TINY, *data, *short, *where, *more]


@pytest.fixture(scope="module")
def adapted(root, tmp_path_factory):
    """A run of R-Adapter on pairs whose adapters have moved."""
    logs = tmp_path_factory.mktemp("logs")
    settings = ["--lr", "1e-2", "--option", "ema=0.5", "--option", "alpha=0.8"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert run(training(root, logs, "r-adapter", *settings)) == 0
    return logs / "r-adapter"


def test_captions_and_classes_are_measured_in_one_command(root, tmp_path, capsys):
    results = tmp_path / "results.jsonl"
    sets = "digits,partial:flickr30k,partial:coco"
    command = ["eval", *TINY, "--eval-datasets", sets, "--data-location", str(root)]
    assert run([*command, "--results-db", str(results)]) == 0
    printed = capsys.readouterr().out
    assert "Flickr30k: forgetting (captions, no classes), 25 images, 50 captions" in printed
    assert "zero-shot  COCO: mean recall " in printed
    digits, *captioned = lines(results)
    assert digits["Digits:top1"] > 0.5
    assert [(x["dataset"], x["n"], x["captions"]) for x in captioned] == [
        ("Flickr30k", 25, 50),
        ("COCO", 30, 90),
    ]
    clip = open_clip_tiny()
    for line, name in zip(captioned, ("flickr30k", "coco"), strict=True):
        data = load_dataset(f"partial:{name}@{root}", "test").with_transform(clip.preprocess_val)
        found = retrieve(clip.model, clip.tokenizer, data)
        own = line["dataset"]
        assert {name: line[f"{own}:{name}"] for name in MEASURES} == dict(found.values)
        assert line[f"{own}:mean-recall"] == pytest.approx(found.mean)


def open_clip_tiny():
    from robustft.models import load_clip

    return load_clip("robustft-tiny", "glyphs")


def test_sets_with_captions_alone_take_one_as_home(root, tmp_path, capsys):
    command = ["eval", *TINY, "--suite", "partial:retrieval", "--data-location", str(root)]
    assert run([*command, "--results-db", str(tmp_path / "results.jsonl")]) == 0
    found = lines(tmp_path / "results.jsonl")
    assert [(x["dataset"], x["role"]) for x in found] == [("COCO", "id"), ("Flickr30k", "ood")]
    command = ["eval", *TINY, "--eval-datasets", f"partial:flickr30k@{root}"]
    assert run(command) == 0
    assert "Flickr30k: id (the training data's own)" in capsys.readouterr().out


def test_a_run_on_pairs_is_measured_before_and_after(adapted, capsys):
    found = lines(adapted / "results.jsonl")
    roles = {(x["method"], x["dataset"], x["role"]) for x in found}
    for method in ("zero-shot", "r-adapter"):
        assert (method, "COCO", "id") in roles
        assert (method, "Flickr30k", "ood") in roles
        assert (method, "Inks-200", "forgetting") in roles
    log = [x for x in lines(adapted / "log.jsonl") if "val:mean-recall" in x]
    opened = open_run(adapted, "cpu")
    assert opened.fine_tuned.classnames == []
    val = load_dataset(opened.options.data_location, "val").with_transform(opened.train.transform)
    again = retrieve(opened.fine_tuned.clip, opened.clip.tokenizer, val)
    assert log[-1]["val:mean-recall"] == pytest.approx(again.mean)
    before, after = (
        [x for x in found if x["dataset"] == "COCO" and x["method"] == method]
        for method in ("zero-shot", "r-adapter")
    )
    assert before[-1]["COCO:mean-recall"] != after[-1]["COCO:mean-recall"]


def test_the_captions_of_an_image_are_positives_of_each_other(root, tmp_path, monkeypatch):
    seen = []
    plain = METHODS["r-adapter"].loss
    monkeypatch.setattr(
        METHODS["r-adapter"],
        "loss",
        lambda self, module, batch: seen.append(batch) or plain(self, module, batch),
    )
    settings = ["--epochs", "1", "--batch-size", "90"]
    assert run(training(root, tmp_path, "r-adapter", *settings)) == 0
    (batch,) = seen
    assert torch.bincount(batch["label"]).tolist() == [3] * 30, "all pairs of train and restval"
    train = load_dataset(f"partial:coco@{root}", "train")
    tokens = open_clip_tiny().tokenizer(train.texts)
    owner = {
        tuple(row): image for row, image in zip(tokens.tolist(), train.owners.tolist(), strict=True)
    }
    assert [owner[tuple(row)] for row in batch["text"].tolist()] == batch["label"].tolist()


@pytest.mark.parametrize("method", PAIRS)
def test_methods_that_take_pairs_train_on_them(root, tmp_path, method):
    more = ["--epochs", "1", "--lr", "1e-4"]
    if METHODS[method].needs_reference:
        more += ["--reference", "glyphs", "--reference-samples", "64"]
    assert run(training(root, tmp_path, method, *more)) == 0
    steps = [x for x in lines(tmp_path / method / "log.jsonl") if "loss" in x]
    assert steps[-1]["step"] == 5, "90 captions, 16 a step, the rest left out"


def test_tables_of_captions_are_training_data_too(root, tmp_path, capsys):
    for split in ("train", "test"):
        data = load_dataset(f"partial:coco@{root}", split)
        rows = [
            f'{data.images.paths[image]},"{text}"'
            for text, image in zip(data.texts, data.owners.tolist(), strict=True)
        ]
        (tmp_path / f"glyphs-{split}.csv").write_text("\n".join(["filepath,title", *rows]) + "\n")
    where = ["--data-location", str(tmp_path / "glyphs-train.csv"), "--logs", str(tmp_path)]
    short = ["--epochs", "1", "--batch-size", "20", "--warmup", "0", "--val-fraction", "0.2"]
    best = ["--select", "best", "--method", "flyp", "--option", "positives=label", "--name", "own"]
    assert run(["train", *TINY, *where, *short, *best]) == 0
    printed = capsys.readouterr().out
    assert "training pairs: 72 captions of glyphs-train" in printed
    assert "glyphs-test: id (the training data's own), 30 images, 90 captions" in printed
    kept = classifier_metadata(tmp_path / "own" / "best.safetensors")["metadata"]
    log = [x for x in lines(tmp_path / "own" / "log.jsonl") if "val:mean-recall" in x]
    assert kept == {"step": 3, "val:mean-recall": log[-1]["val:mean-recall"]}


def test_a_corruption_of_images_with_captions_has_one_severity(root, tmp_path, capsys):
    results = tmp_path / "results.jsonl"
    command = ["eval", *TINY, "--data-location", str(root), "--results-db", str(results)]
    assert run([*command, "--ood", "gaussian-noise-5:partial:coco"]) == 0
    (line,) = lines(results)
    assert 0.5 < line["COCO (gaussian noise 5):mean-recall"] < 1
    assert run([*command, "--ood", "gaussian-noise:partial:coco"]) == 2
    assert "captions, expected one severity, as gaussian-noise-3" in capsys.readouterr().err


def test_a_run_on_pairs_resumes_bit_for_bit(root, tmp_path):
    settings = ["--lr", "1e-2", "--option", "ema=0.5", "--save-steps", "1", "--keep", "20"]
    assert run(training(root, tmp_path / "whole", "r-adapter", *settings)) == 0
    whole, part = tmp_path / "whole" / "r-adapter", tmp_path / "part" / "r-adapter"
    steps = sorted((whole / "checkpoints").iterdir(), key=lambda path: path.name)
    shutil.copytree(steps[3], part / "checkpoints" / steps[3].name)
    shutil.copy(whole / "config.yaml", part)
    again = training(root, tmp_path / "part", "r-adapter", *settings, "--resume", "latest")
    assert run(again) == 0
    one, two = (load_file(folder / "model.safetensors") for folder in (whole, part))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_two_processes_train_on_pairs_to_the_weights_and_recalls_of_one(root, tmp_path):
    more = ["--lr", "1e-2", "--option", "ema=0.5", "--option", "drop_mode=token"]
    assert run(training(root, tmp_path / "one", "r-adapter", *more)) == 0
    command = training(root, tmp_path / "two", "r-adapter", *more, "--batch-size", "8")
    command[command.index("--logs")] = "--logs-dir"  # which torchrun does not take for its own
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = os.pathsep.join(path for path in sys.path if path)
    subprocess.run(
        [sys.executable, *launch, "-m", "robustft", *command],
        env=dict(os.environ, PYTHONPATH=paths, OMP_NUM_THREADS="1"),
        timeout=300,
        check=True,
    )
    one, two = (tmp_path / name / "r-adapter" for name in ("one", "two"))
    weights, again = (load_file(folder / "model.safetensors") for folder in (one, two))
    assert max((weights[k] - again[k]).abs().max() for k in weights if weights[k].numel()) < 1e-5
    measured = [
        [{k: v for k, v in x.items() if ":" in k} for x in lines(folder / "results.jsonl")]
        for folder in (one, two)
    ]
    assert [x for x in measured[0] if "COCO:mean-recall" in x] == [
        x for x in measured[1] if "COCO:mean-recall" in x
    ]


def test_mean_recall_on_validation_chooses_a_strength(adapted, tmp_path, capsys):
    saved, results = tmp_path / "chosen.safetensors", tmp_path / "results.jsonl"
    command = ["eval", "--run", str(adapted), "--alpha", "0,0.5,1", "--save", str(saved)]
    assert run([*command, "--results-db", str(results)]) == 0
    printed = capsys.readouterr().out
    assert "chosen by ID validation: α=" in printed
    assert "on 12 validation images" in printed
    curve = [x for x in lines(results) if x["dataset"] == "COCO"]
    assert [x["alpha"] for x in curve if x["method"] == "r-adapter"] == [0, 0.5, 1]
    assert sum(x["selected"] for x in curve if x["method"] == "r-adapter") == 1
    plain = [x for x in lines(adapted / "results.jsonl") if x["dataset"] == "COCO"]
    zero = next(x for x in plain if x["method"] == "zero-shot")
    assert curve[0]["COCO:mean-recall"] == pytest.approx(zero["COCO:mean-recall"])


def test_weights_are_mixed_by_mean_recall_and_outputs_are_not(adapted, tmp_path, capsys):
    assert run(["wise-ft", "--run", str(adapted), "--alpha", "0,0.5,1"]) == 0
    assert "chosen by ID validation: α=" in capsys.readouterr().out
    for command in (["vrf"], ["wise-ft", "--space", "outputs"]):
        assert run([*command, "--run", str(adapted)]) == 2
        assert "got the captions of COCO, expected data with classes" in capsys.readouterr().err


def test_a_trained_model_is_taken_as_weights(adapted, root, tmp_path, capsys):
    """model.safetensors has no class, and so no head that others would have to fit."""
    weights = ["--pretrained", str(adapted / "model.safetensors")]
    command = ["eval", *TINY, *weights, "--eval-datasets", f"digits,partial:coco@{root}"]
    assert run([*command, "--results-db", str(tmp_path / "results.jsonl")]) == 0
    digits, coco = lines(tmp_path / "results.jsonl")
    own = [x for x in lines(adapted / "results.jsonl") if x["dataset"] == "COCO"]
    after = next(x for x in own if x["method"] == "r-adapter" and x["alpha"] is None)
    assert coco["COCO:mean-recall"] == pytest.approx(after["COCO:mean-recall"])
    assert 0 < digits["Digits:top1"] <= 1


def test_methods_of_classes_refuse_captions_in_one_line(root, tmp_path, capsys):
    assert run(training(root, tmp_path, "ft")) == 2
    assert "train: got 'COCO', captions without classes, expected classes for ft" in (
        capsys.readouterr().err
    )
    assert run(training(root, tmp_path, "flyp", "--shots", "4")) == 2
    assert "shots: got 4 for COCO, expected images with classes" in capsys.readouterr().err
    compare = ["compare", "--methods", "flyp", *TINY, "--out", str(tmp_path / "out")]
    data = ["--data", "partial:coco", "--data-location", str(root)]
    assert run([*compare, *data]) == 2
    assert "got COCO, captions, expected classes to compare on" in capsys.readouterr().err


def test_a_trainer_says_what_it_expects_of_pairs(root):
    clip = open_clip_tiny()
    train, val = (load_dataset(f"partial:coco@{root}", split) for split in ("train", "val"))

    def trainer(method, train, val):
        return Trainer(make_method(method), clip, train, val, TrainConfig(), templates=["{}"])

    with pytest.raises(
        InputError, match=r"train: got images of 'COCO', expected pairs: Capt.*\(\)"
    ):
        trainer("flyp", train, val)
    with pytest.raises(InputError, match="val: got 'COCO', expected a CaptionedDataset"):
        trainer("flyp", train.pairs(), val.pairs())
    with pytest.raises(InputError, match="captions without classes, expected classes for lp-ft"):
        trainer("lp-ft", train.pairs(), val)


def test_a_plan_counts_pairs(root, tmp_path, capsys):
    assert run([*training(root, tmp_path, "r-adapter"), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "train: 30 images, 90 captions of COCO" in printed
    assert "2 epochs of 5 steps, 10 in all" in printed


def test_a_report_says_that_a_column_is_mean_recall(adapted, tmp_path):
    from robustft.report import table

    printed = table(lines(adapted / "results.jsonl"))
    assert "COCO, mean recall (ID)" in printed
    assert "Flickr30k, mean recall" in printed
    assert "R-Adapter" in printed
