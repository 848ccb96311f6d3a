"""The command line end to end, on an image folder written to disk, and its answers to bad input."""

import json

import pytest
import torch
from safetensors.torch import load_file

from robustft.cli.app import run


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    """A short FT run, made through the command line."""
    logs = tmp_path_factory.mktemp("logs")
    assert run([*_train(images, logs), "--method", "ft", "--report-to", "tensorboard"]) == 0
    return logs / "ft-run"


def _train(images, logs):
    return [
        *("train", "--model", "robustft-tiny", "--data-location", str(images)),
        *("--epochs", "2", "--batch-size", "8", "--lr", "1e-3", "--warmup", "2"),
        *("--logs", str(logs), "--name", "ft-run", "--aug", "none"),
    ]


def _lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_training_leaves_a_complete_run_folder(trained):
    assert (trained / "config.yaml").is_file()
    assert (trained / "model.safetensors").is_file()
    assert (trained / "log.jsonl").is_file()
    assert list((trained / "tensorboard").rglob("events.out.tfevents.*"))
    lines = _lines(trained / "results.jsonl")
    found = [(line["method"], line["dataset"], line["role"]) for line in lines]
    own = found[0][1]
    assert found == [
        *(("zero-shot", own, "id"), ("zero-shot", "Inks-200", "forgetting")),
        *(("ft", own, "id"), ("ft", "Inks-200", "forgetting")),
        *(("zero-shot", "Inks-200", "geometry"), ("ft", "Inks-200", "geometry")),
    ]
    line = lines[2]
    assert line["role"] == "id"
    assert line["split"] == "test"
    assert line["n"] == 18
    name = line["dataset"]
    assert line[f"{name}:top1"] > 0.6


def test_the_other_verbs_work_on_a_run(trained, images, tmp_path, capsys):
    results = tmp_path / "all.jsonl"
    common = ["--run", str(trained), "--results-db", str(results)]
    assert run(["eval", *common, "--eval-datasets", f"{images},letters"]) == 0
    roles = {line["dataset"]: line["role"] for line in _lines(results)}
    assert roles["Letters"] == "forgetting"
    assert run(["wise-ft", *common, "--alpha", "0", "--alpha", "0.5", "--alpha", "1"]) == 0
    assert run(["wise-ft", *common, "--alpha", "0.5", "--space", "outputs"]) == 0
    assert run(["vrf", *common]) == 0
    lines = _lines(results)
    on_id = [x for x in lines if x["role"] == "id"]
    assert [x["alpha"] for x in on_id if x.get("method") == "wise-ft"] == [0.0, 0.5, 1.0]
    assert sum(x["selected"] for x in on_id if x.get("method") == "wise-ft") == 1
    assert all(x["base"] == "ft" for x in lines if x["role"] == "ratio")
    assert [x["base"] for x in on_id if x.get("method") in ("ose", "vrf")] == ["ft", "ft"]
    assert run(["wise-ft", *common, "--alpha", "0,1", "--space", "outputs", "--calibrate"]) == 0
    assert run(["wise-ft", *common, "--alpha", "0.5", "--space", "logits"]) == 0
    ablation = [
        "--a",
        "1.5",
        "--b",
        "0.6",
        "--space",
        "logit",
        "--omega",
        "linear",
        "--bank",
        "all",
    ]
    capsys.readouterr()
    assert run(["vrf", *common, *ablation]) == 0
    assert "a=1.5, b=0.6" in capsys.readouterr().out
    more = _lines(results)[len(lines) :]
    more_id = [x for x in more if x["role"] == "id"]
    assert [x["alpha"] for x in more_id if x.get("method") == "calibrated-ose"] == [0.0, 1.0]
    assert [x["alpha"] for x in more_id if x.get("method") == "lse"] == [0.5]
    assert more[-1]["method"] != "vrf", "an ablation is not VRF itself"
    assert (trained / "wise-ft.safetensors").is_file()
    assert (trained / "vrf.safetensors").is_file()
    capsys.readouterr()
    out = tmp_path / "report"
    assert run(["report", "--results-db", str(results), "--out", str(out)]) == 0
    assert "WiSE-FT" in capsys.readouterr().out
    assert (out / "report.html").stat().st_size > 1000


def test_vrf_searches_for_every_sample_once(trained, monkeypatch):
    from robustft.ensemble.vrf import VRF

    searched, distance = [], VRF.distance

    def counted(self, features):
        searched.append((len(features), float(features.double().sum())))
        return distance(self, features)

    monkeypatch.setattr(VRF, "distance", counted)
    assert run(["vrf", "--run", str(trained)]) == 0
    assert len(searched) == len(set(searched)) == 3, "validation and the run's two test sets"


def test_zero_shot_evaluation_needs_no_run(images, tmp_path):
    results = tmp_path / "zs.jsonl"
    arguments = ["--model", "robustft-tiny", "--pretrained", "glyphs"]
    datasets = ["--eval-datasets", "digits,letters", "--results-db", str(results)]
    assert run(["eval", *arguments, *datasets]) == 0
    scores = {x["dataset"]: x[f"{x['dataset']}:top1"] for x in _lines(results)}
    assert scores["Digits"] > 0.4
    assert scores["Letters"] > 0.5


def test_a_stopped_run_resumes_to_the_same_weights(images, tmp_path, monkeypatch):
    """A fault in the second epoch leaves a checkpoint from which --resume goes on, bit for bit."""
    from robustft.methods.ft import FT

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run([*_train(images, whole), "--method", "ft"]) == 0
    loss, calls = FT.loss, []

    def failing(self, module, batch):
        calls.append(1)
        if len(calls) == 8:
            raise RuntimeError("pulled the plug")
        return loss(self, module, batch)

    monkeypatch.setattr(FT, "loss", failing)
    with pytest.raises(RuntimeError, match="pulled the plug"):
        run([*_train(images, broken), "--method", "ft"])
    monkeypatch.setattr(FT, "loss", loss)
    config = broken / "ft-run" / "config.yaml"
    assert run(["train", "--config", str(config), "--resume", "latest"]) == 0
    one, two = (load_file(d / "ft-run" / "model.safetensors") for d in (whole, broken))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--methd", "ft"], "No such option"),
        (["train", "--method", "fft"], "--method: got 'fft', expected one of zero-shot"),
        (["train", "--data-location", "no/such/folder"], "no/such/folder"),
        (["train", "--data-location", "dgits"], "unknown dataset 'dgits'"),
        (["train", "--method", "dive", "--data-location", "digits"], "expected reference pairs"),
        (["train", "--option", "rank=4", "--method", "ft"], "rank"),
        (["train", "--model", "ViT-Z-99"], "ViT-Z-99"),
        (["train", "--lr", "-1", "--model", "robustft-tiny"], "lr"),
        (["train", "--device", "tpu9"], "--device: got 'tpu9'"),
        (["eval"], "--eval-datasets: got nothing"),
        (["eval", "--run", "nowhere"], "nowhere: no config.yaml there"),
        (["wise-ft"], "--run: got nothing"),
        (["wise-ft", "--calibrate"], "--calibrate: got it with --space weights"),
        (["vrf", "--omega", "cubic"], "--omega: got 'cubic', expected one of sigmoid"),
        (["eval", "--run", "x", "--model", "y"], "--model: got 'y' beside --run"),
        (["eval", "--run", "x", "--seed", "0"], "--seed: got 0 beside --run"),
        (["report"], "--results-db: got nothing"),
        (["report", "--results-db", "absent.jsonl"], "absent.jsonl"),
        (["demo", "--seeds", "0"], "--seeds: got 0"),
        (["nonsense"], "No such command"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("robustft: ")
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == [], "nothing may be left behind"


def test_data_without_a_test_split_train_where_others_are_evaluated_on(images, tmp_path, capsys):
    import shutil

    root = tmp_path / "images"
    shutil.copytree(images / "train", root / "train")
    arguments = [*_train(root, tmp_path / "logs"), "--method", "zero-shot"]
    assert run(arguments) == 2
    assert "test" in capsys.readouterr().err
    assert not (tmp_path / "logs").exists()
    assert run([*arguments, "--eval-datasets", "letters"]) == 0
    line = _lines(tmp_path / "logs" / "ft-run" / "results.jsonl")[-1]
    assert (line["dataset"], line["role"]) == ("Letters", "forgetting")


def test_a_run_is_not_overwritten(trained, images, capsys):
    before = (trained / "model.safetensors").read_bytes()
    assert run([*_train(images, trained.parent), "--method", "ft"]) == 2
    assert "a run is there already" in capsys.readouterr().err
    assert (trained / "model.safetensors").read_bytes() == before


def test_resuming_another_run_is_refused(trained, images, capsys):
    arguments = [*_train(images, trained.parent), "--method", "ft", "--resume", "latest"]
    assert run([*arguments, "--lr", "5e-4"]) == 2
    assert "lr" in capsys.readouterr().err


def test_an_unreadable_image_is_named(images, tmp_path, capsys):
    import shutil

    root = tmp_path / "images"
    shutil.copytree(images, root)
    broken = root / "train" / "one" / "3.png"
    broken.write_bytes(b"not a picture")
    assert run([*_train(root, tmp_path / "logs"), "--method", "ft"]) == 2
    assert str(broken) in capsys.readouterr().err


def test_a_full_disk_is_exit_code_2(images, tmp_path, capsys, monkeypatch):
    import errno
    import os

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    assert run([*_train(images, tmp_path), "--method", "ft"]) == 2
    assert "No space left on device" in capsys.readouterr().err
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert left == []


def test_help_version_and_doctor(capsys):
    assert run(["--help"]) == 0
    assert run([]) == 0
    assert run(["--version"]) == 0
    assert run(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "reference  runs" in text
    for verb in ("demo", "train", "eval", "wise-ft", "vrf", "report", "doctor"):
        assert verb in text
