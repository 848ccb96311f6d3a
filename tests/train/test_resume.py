"""A run that is stopped and resumed ends with the same bits as one that is not."""

import os
import signal
import subprocess
import sys

import pytest

from robustft.errors import InputError
from robustft.train import checkpoint


class Stopped(Exception):
    pass


def stop_at(step):
    def on_step(done):
        if done == step:
            raise Stopped

    return on_step


# Nine steps an epoch and stage of 45 images in batches of 5, so that stops fall inside epochs.
CASES = [
    ("ft", {}, 11),
    ("linear-probe", {}, 7),
    ("lp-ft", {}, 7),  # in the probe
    ("lp-ft", {}, 18),  # at its end
    ("lp-ft", {}, 25),  # after it
    ("flyp", {}, 11),
    ("r-adapter", {"drop": 0.4, "rank": 4, "ema": 0.9}, 11),
    ("dive", {"momentum": 0.9, "reference_batch_size": 7}, 11),
]


@pytest.mark.parametrize(("name", "options", "stop"), CASES)
def test_resumed_run_has_the_same_bits(run, same, tmp_path, name, options, stop):
    config = {"options": options, "batch_size": 5, "grad_clip_norm": 1.0, "warmup": 3}
    whole = run(name, tmp_path / "whole", **config)
    with pytest.raises(Stopped):
        run(name, tmp_path / "cut", save_steps=stop, on_step=stop_at(stop + 1), **config)
    assert [p.name for p in checkpoint.complete(tmp_path / "cut")] == [f"step-{stop:08d}"]
    resumed = run(name, tmp_path / "cut", resume="latest", **config)
    assert same(whole.classifier, resumed.classifier)
    assert whole.val_top1 == resumed.val_top1

    def log(trainer):
        return [{k: v for k, v in r.items() if k != "images_per_s"} for r in trainer.log.records]

    assert log(whole) == log(resumed)


def test_random_transforms_and_accumulation_resume(run, same, tmp_path, world):
    from torchvision import transforms

    augment = transforms.Compose([transforms.RandomCrop(24, padding=3), transforms.ToTensor()])
    train = world.raw.with_transform(augment)
    config = {"train": train, "batch_size": 4, "accum_freq": 5}
    whole = run("flyp", **config)
    with pytest.raises(Stopped):
        run("flyp", tmp_path, save_steps=2, on_step=stop_at(4), **config)
    resumed = run("flyp", tmp_path, resume="latest", workers=1, **config)
    assert same(whole.classifier, resumed.classifier)
    assert not same(whole.classifier, run("flyp", **(config | {"train": None})).classifier)


SETTINGS = {"batch_size": 9, "save_steps": 3}
# The world of conftest.py, made anew in a process of its own.
SCRIPT = """
import os, signal, sys, torch
from robustft.data import load_dataset
from robustft.methods import make_method
from robustft.models import load_clip
from robustft.train import TrainConfig, fit

torch.set_num_threads(1)
torch.manual_seed(0)
clip = load_clip("robustft-tiny")
digits = load_dataset("digits", "train").subset(range(45), split="train")
train = digits.preloaded(clip.preprocess_val)

def on_step(done):
    if done == 4 and sys.argv[2] == "kill":
        os._exit(7)
    if done == 4:
        os.kill(os.getpid(), signal.SIGTERM)

config = TrainConfig(epochs=2, batch_size=9, lr=1e-3, warmup=0, wd=0.01, device="cpu",
    log_frequency=1, save_frequency=0, save_steps=3)
fit(make_method("flyp"), clip, train, None, config, sys.argv[1], progress=False, on_step=on_step,
    templates=["a photo of the digit {}.", "a {}.", "the number {}."])
"""


def in_process(folder, how):
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    command = [sys.executable, "-c", SCRIPT, str(folder), how]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    return done.returncode, done.stderr


def test_killed_process_resumes(run, same, tmp_path):
    whole = run("flyp", **SETTINGS)
    assert in_process(tmp_path, "kill")[0] == 7
    assert not (tmp_path / "model.safetensors").exists()
    assert [p.name for p in checkpoint.complete(tmp_path)] == ["step-00000003"]
    assert same(run("flyp", tmp_path, resume="latest", **SETTINGS).classifier, whole.classifier)


def test_sigterm_finishes_the_step_and_saves(run, same, tmp_path):
    code, errors = in_process(tmp_path, "terminate")
    assert code == 128 + signal.SIGTERM, errors
    # The signal came after step 4; step 5 was finished and saved.
    assert [p.name for p in checkpoint.complete(tmp_path)][-1] == "step-00000005"
    resumed = run("flyp", tmp_path, resume="latest", **SETTINGS)
    assert same(resumed.classifier, run("flyp", **SETTINGS).classifier)


def test_checkpoint_of_another_run_is_refused(run, tmp_path, world):
    config = {"batch_size": 15, "save_frequency": 1}
    run("ft", tmp_path / "a", **config)
    for changed in ({"lr": 2e-3}, {"epochs": 3}, {"batch_size": 9}, {"seed": 1}):
        (name,) = changed
        with pytest.raises(InputError, match=rf"another run: config\.{name}: .* there, .* here"):
            run("ft", tmp_path / "a", resume="latest", **(config | changed))
    with pytest.raises(InputError, match=r"method\.name: 'ft' there, 'linear-probe' here"):
        run("linear-probe", tmp_path / "a", resume="latest", **config)
    fewer = world.train.subset(range(30), split="train")
    with pytest.raises(InputError, match=r"train\.n: 45 there, 30 here"):
        run("ft", tmp_path / "a", resume="latest", train=fewer, **config)
    # Settings without influence on the result may change; a finished run ends as it did.
    again = run("ft", tmp_path / "a", resume="latest", **(config | {"workers": 1, "keep": 1}))
    assert again.log.records[-1]["step"] == 6


def test_a_run_is_not_overwritten(run, tmp_path):
    run("linear-probe", tmp_path)
    with pytest.raises(InputError, match="holds a run already"):
        run("linear-probe", tmp_path)


def test_resume_of_nothing(run, tmp_path):
    with pytest.raises(InputError, match="not a checkpoint folder"):
        run("ft", tmp_path, resume=tmp_path / "nowhere")
    with pytest.raises(InputError, match="needs a run folder"):
        run("ft", resume="latest")
    assert len(run("linear-probe", tmp_path, resume="latest").log.records) > 1


def test_damaged_checkpoint_says_so(run, tmp_path):
    with pytest.raises(Stopped):
        run("ft", tmp_path, save_steps=1, on_step=stop_at(3))
    newest = checkpoint.complete(tmp_path)[-1]
    weights = newest / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match="cannot be loaded"):
        run("ft", tmp_path, resume="latest")


def test_failed_save_leaves_the_earlier_checkpoints(run, tmp_path, monkeypatch):
    """A disk that fills up: torch's and safetensors' own errors become OSError."""
    import accelerate

    real = accelerate.Accelerator.save_state
    calls = []

    def full(self, folder, **options):
        calls.append(folder)
        real(self, folder, **options)
        if len(calls) == 3:
            raise RuntimeError("No space left on device")

    monkeypatch.setattr(accelerate.Accelerator, "save_state", full)
    with pytest.raises(OSError, match=r"cannot write checkpoint .*No space left"):
        run("ft", tmp_path, save_steps=1)
    left = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert left == ["step-00000001", "step-00000002"]
    monkeypatch.undo()
    run("ft", tmp_path, resume="latest", save_steps=1, keep=1)
    assert [p.name for p in checkpoint.complete(tmp_path)] == ["step-00000006"]
