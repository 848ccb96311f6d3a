"""α chosen after training: `robustft eval --alpha` on runs with and without adapters."""

import json

import pytest
import torch
from safetensors.torch import load_file

from robustft.cli.app import run
from robustft.cli.runs import open_run


def train(images, logs, method, *more):
    fixed = ("--model", "robustft-tiny", "--pretrained", "glyphs", "--device", "cpu")
    fixed += ("--epochs", "2", "--batch-size", "8", "--warmup", "0", "--aug", "none")
    data = ("--data-location", str(images), "--logs", str(logs), "--name", method)
    data += ("--id", str(images), "--zero-shot", str(images.parent / "others"))
    assert run(["train", *fixed, *data, "--method", method, *more]) == 0
    return logs / method


@pytest.fixture(scope="module")
def adapted(images, tmp_path_factory):
    """A run of R-Adapter whose adapters have moved, made through the command line."""
    settings = ("--lr", "1e-2", "--option", "ema=0.5", "--option", "alpha=0.3")
    return train(images, tmp_path_factory.mktemp("logs"), "r-adapter", *settings)


@pytest.fixture(scope="module")
def tuned(images, tmp_path_factory):
    """A run of FLYP."""
    return train(images, tmp_path_factory.mktemp("logs"), "flyp", "--lr", "1e-3")


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def largest_difference(one, two):
    assert one.keys() == two.keys()
    return max(float((one[name] - two[name]).abs().max()) for name in one)


def test_the_adapters_of_a_run_make_its_result(adapted):
    """On the zero-shot model they give, merged at the run's α, model.safetensors."""
    from robustft.models import Classifier, copy_clip, load_adapters, merged_state_dict

    opened = open_run(adapted, "cpu")
    carrier, plain = copy_clip(opened.clip), copy_clip(opened.clip)
    adapters = load_adapters(adapted / "adapters", carrier.model)
    assert adapters.alpha == 0.3
    plain.model.load_state_dict(merged_state_dict(carrier.model, adapters))
    again = Classifier.zero_shot(plain, opened.train.classnames, opened.templates)
    saved = opened.fine_tuned.state_dict()
    assert largest_difference(again.state_dict(), saved) < 1e-5
    assert largest_difference(opened.zero_shot.state_dict(), saved) > 1e-3


def test_a_strength_of_one_is_the_adapters_as_they_were_trained(adapted, images, tmp_path):
    """`eval --alpha 1` keeps what the model with unscaled adapters computes."""
    from robustft.models import copy_clip, load_adapters

    saved, results = tmp_path / "one.safetensors", tmp_path / "results.jsonl"
    command = ["eval", "--run", str(adapted), "--alpha", "1", "--save", str(saved)]
    assert run([*command, "--results-db", str(results)]) == 0
    opened = open_run(adapted, "cpu")
    unmerged = copy_clip(opened.clip)
    adapters = load_adapters(adapted / "adapters", unmerged.model)
    adapters.alpha = 1.0
    tensors = load_file(saved)
    merged = copy_clip(opened.clip)
    clip = {k.removeprefix("clip."): v for k, v in tensors.items() if k.startswith("clip.")}
    merged.model.load_state_dict(clip)
    picture = opened.clip.preprocess_val(opened.train.with_transform(None)[0]["image"])[None]
    with torch.no_grad():
        one, two = (c.model.eval().encode_image(picture) for c in (merged, unmerged))
        plain = opened.clip.model.encode_image(picture)
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
    assert (one - plain).abs().max() > 1e-2
    found = {(x["method"], x["alpha"], x["selected"]) for x in lines(results)}
    assert {x for x in found if x[1] is not None} == {("r-adapter", 1.0, True)}


def test_of_several_strengths_validation_chooses_one(adapted, tmp_path, capsys, monkeypatch):
    from robustft.evaluate.suite import Suite

    evaluated, outputs_each = [], Suite.outputs_each
    monkeypatch.setattr(
        Suite,
        "outputs_each",
        lambda self, models: evaluated.extend(models) or outputs_each(self, models),
    )
    results = tmp_path / "results.jsonl"
    command = ["eval", "--run", str(adapted), "--alpha", "0,0.5,1"]
    assert run([*command, "--results-db", str(results)]) == 0
    said = capsys.readouterr().out
    assert len(evaluated) == 4  # and the zero-shot model; the chosen one is not evaluated again
    assert "chosen by ID validation: α=" in said
    assert "R-Adapter" not in said
    curve = [x for x in lines(results) if x["role"] == "id"]
    assert [x["alpha"] for x in curve] == [0.0, 0.5, 1.0]
    assert {x["method"] for x in curve} == {"r-adapter"}
    assert sum(x["selected"] for x in curve) == 1
    zero = next(x for x in lines(adapted / "results.jsonl") if x["method"] == "zero-shot")
    name = zero["dataset"]
    assert curve[0][f"{name}:top1"] == zero[f"{name}:top1"]
    (chosen,) = (x["alpha"] for x in curve if x["selected"])
    assert f"α={chosen:g}:" in said
    # The geometry of the chosen strength stands beside its accuracy.
    assert [x["method"] for x in lines(results) if x["role"] == "geometry"] == ["r-adapter"]


def test_other_runs_are_mixed_with_the_zero_shot_model(tuned, tmp_path):
    """The lines are those of `wise-ft` at the same weights."""
    results, curve = tmp_path / "results.jsonl", tmp_path / "curve.jsonl"
    assert run(["eval", "--run", str(tuned), "--alpha", "0.5,1", "--results-db", str(results)]) == 0
    assert (
        run(["wise-ft", "--run", str(tuned), "--alpha", "0.5,1", "--results-db", str(curve)]) == 0
    )
    assert lines(results) == lines(curve)
    assert {(x["method"], x["base"]) for x in lines(results)} == {("wise-ft", "flyp")}


def test_what_eval_cannot_scale_is_one_line(tuned, adapted, images, tmp_path, capsys):
    probe = train(images, tmp_path, "zero-shot")
    (tmp_path / "old").mkdir()
    for file in adapted.iterdir():
        if file.is_file():
            (tmp_path / "old" / file.name).write_bytes(file.read_bytes())
    for arguments, message in (
        (["--alpha", "0.5"], "--alpha: got it without --run"),
        (
            ["--run", str(tuned), "--alpha", "1.5"],
            "--alpha: got 1.5, expected a finite number, at least 0",
        ),
        (
            ["--run", str(tuned), "--alpha", "nan"],
            "--alpha: got nan, expected a finite number, at least 0",
        ),
        (["--run", str(tuned), "--save", "x.safetensors"], "--save: got x.safetensors without"),
        (["--run", str(tuned), "--alpha", "1", "--save", "x.pt"], "--save: got x.pt, expected"),
        (["--run", str(probe), "--alpha", "0.5"], "got a run of zero-shot, expected for wise-ft"),
        (["--run", str(tmp_path / "old"), "--alpha", "1"], "no folder adapters there"),
    ):
        capsys.readouterr()
        assert run(["eval", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_the_best_validation_keeps_its_own_adapters(images, tmp_path, monkeypatch):
    """With --select best the adapters are those of the step that the result is of."""
    from robustft.models import copy_clip, load_adapters, merged_state_dict
    from robustft.train.loop import Trainer

    accuracies = iter([0.9, 0.1])  # the first epoch is the best
    monkeypatch.setattr(Trainer, "_score", lambda self, classifier: next(accuracies))
    settings = ("--lr", "1e-2", "--option", "ema=0.5", "--select", "best")
    folder = train(images, tmp_path, "r-adapter", *settings)
    opened = open_run(folder, "cpu")
    carrier = copy_clip(opened.clip)
    adapters = load_adapters(folder / "adapters", carrier.model)
    merged = merged_state_dict(carrier.model, adapters)
    saved = load_file(folder / "model.safetensors")
    clip = {k.removeprefix("clip."): v for k, v in saved.items() if k.startswith("clip.")}
    assert largest_difference(merged, clip) < 1e-5
    last = load_file(folder / "checkpoints" / "step-00000010" / "model.safetensors")
    name, weight = next((k, v) for k, v in adapters.state_dict().items() if k.endswith(".weight"))
    host = name.removesuffix(".weight")
    (later,) = (v for k, v in last.items() if host in k and k.endswith(".r_adapter.weight"))
    assert not torch.equal(later, weight)
