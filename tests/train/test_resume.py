"""A run that is stopped and resumed ends with the same bits as one that is not."""

import contextlib
import copy
import dataclasses
import os
import pickle
import re
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from robustft.errors import InputError
from robustft.methods import METHODS
from robustft.train import checkpoint, state


class Stopped(Exception):
    pass


def stop_at(step):
    def on_step(done):
        if done == step:
            raise Stopped

    return on_step


# Nine steps an epoch and stage of 45 images in batches of 5, so that stops fall inside epochs.
CASES = [
    ("linear-probe", {}, 7),
    ("lp-ft", {}, 7),  # in the probe
    ("lp-ft", {}, 18),  # at its end
    ("lp-ft", {}, 25),  # after it
    ("r-adapter", {"drop": 0.4, "rank": 4, "ema": 0.9}, 11),
    ("dive", {"momentum": 0.9, "reference_batch_size": 7}, 11),
]
OTHERS = [name for name in METHODS if name not in {"zero-shot", *(name for name, *_ in CASES)}]
CASES += [(name, {}, 11) for name in OTHERS]


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
        os.kill(os.getpid(), getattr(signal, sys.argv[2]))

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


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_finishes_the_step_and_saves(run, same, tmp_path, name):
    code, errors = in_process(tmp_path, name)
    assert code == 128 + getattr(signal, name), errors
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
    with pytest.raises(InputError, match=r"run_dir: got .*, which holds a run"):
        run("linear-probe", tmp_path)


def test_resume_of_nothing(run, tmp_path):
    with pytest.raises(InputError, match=r"resume: got .*nowhere, expected a checkpoint"):
        run("ft", tmp_path, resume=tmp_path / "nowhere")
    with pytest.raises(InputError, match='resume: got "latest" without a run folder'):
        run("ft", resume="latest")
    assert len(run("linear-probe", tmp_path, resume="latest").log.records) > 1


def test_damaged_checkpoint_says_so(run, tmp_path):
    with pytest.raises(Stopped):
        run("ft", tmp_path, save_steps=1, on_step=stop_at(3))
    newest = checkpoint.complete(tmp_path)[-1]
    weights = newest / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match=r"model\.safetensors is damaged"):
        run("ft", tmp_path, resume="latest")


def test_one_flipped_byte_of_a_checkpoint_is_found_and_named(run, tmp_path):
    with pytest.raises(Stopped):
        run("ft", tmp_path, save_steps=1, on_step=stop_at(2))
    (*_, newest) = checkpoint.complete(tmp_path)
    for file in sorted(newest.iterdir()):
        whole = file.read_bytes()
        place = len(whole) * 2 // 3
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(InputError, match=re.escape(str(file))):
            run("ft", tmp_path, resume="latest")
        file.write_bytes(whole)
    assert run("ft", tmp_path, resume="latest").val_top1 is not None


def test_a_checkpoint_whose_step_was_changed_is_found(run, tmp_path):
    """All that is in trainer.json fits, but its checksum."""
    with pytest.raises(Stopped):
        run("ft", tmp_path, save_steps=1, on_step=stop_at(2))
    meta = checkpoint.complete(tmp_path)[-1] / "trainer.json"
    text = meta.read_text()
    assert text.count('"step": 2') == 1
    meta.write_text(text.replace('"step": 2', '"step": 1'))
    with pytest.raises(InputError, match=r"trainer\.json is damaged: its checksum"):
        run("ft", tmp_path, resume="latest")


@pytest.mark.parametrize(
    "meta", ["[]", "7", "{}", '{"format": 2}', '{"format": 2, "sha256": 1}', "[" * 100_000, "NaN"]
)
def test_odd_metadata_is_an_input_error(run, tmp_path, meta):
    folder = tmp_path / "checkpoints" / "step-00000001"
    folder.mkdir(parents=True)
    (folder / "trainer.json").write_text(meta)
    with pytest.raises(InputError, match=r"step-00000001"):
        run("ft", tmp_path, resume="latest")


class Payload:
    """A pickle of it makes a file when it is loaded."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return open, (self.target, "w")


def test_no_file_of_a_checkpoint_can_run_code(run, tmp_path):
    """A pickle in place of every file, and under every name that Accelerate would load."""
    with pytest.raises(Stopped):
        run("ft", tmp_path / "run", save_steps=1, on_step=stop_at(2))
    (*_, newest) = checkpoint.complete(tmp_path / "run")
    ours = sorted(path.name for path in newest.iterdir())
    assert ours == ["model.safetensors", "optimizer.safetensors", "trainer.json"]
    theirs = ["custom_checkpoint_0.pkl", "random_states_0.pkl", "optimizer.bin", "scheduler.bin"]
    theirs += ["scaler.pt", "sampler.bin", "pytorch_model.bin"]
    fired = tmp_path / "fired"
    plain, zipped = pickle.dumps(Payload(fired)), tmp_path / "zipped.pt"
    torch.save({"state": Payload(fired)}, zipped)
    for name in theirs:
        (newest / name).write_bytes(plain)
    assert run("ft", tmp_path / "run", resume="latest").val_top1 is not None
    for content in (plain, zipped.read_bytes()):
        for name in ours:
            whole = (newest / name).read_bytes()
            (newest / name).write_bytes(content)
            with pytest.raises(InputError):
                run("ft", tmp_path / "run", resume=newest)
            with contextlib.suppress(Exception):  # as if the checksum had been made to fit
                state.read_weights(newest, torch.nn.Linear(2, 2))
            with contextlib.suppress(InputError):
                state.read_moments(newest, torch.optim.AdamW([torch.zeros(1)]))
            (newest / name).write_bytes(whole)
    assert not fired.exists()
    pickle.loads(plain)
    assert fired.exists()  # the payload works


def test_unfinished_checkpoints_of_a_killed_run_are_swept(run, tmp_path):
    left = tmp_path / "checkpoints" / ".step-00000003.abcdef_1"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    (tmp_path / "checkpoints" / "notes").mkdir()
    run("linear-probe", tmp_path)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["notes"]


def test_what_a_killed_process_was_replacing_in_a_run_folder_is_swept(run, tmp_path):
    """Every file that a run replaces, left by a process that was killed in the middle of it."""
    script = """
import os, signal, sys
from robustft.atomic import replacing
with replacing(sys.argv[1]) as temporary:
    temporary.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(p for p in sys.path if p))
    names = ["best.safetensors", "log.jsonl", "model.safetensors", "train.json", "config.yaml"]
    for name in [*names, "results.svg"]:  # the last is no file of a run's
        command = [sys.executable, "-c", script, str(tmp_path / name)]
        assert subprocess.run(command, env=environment, check=False).returncode == -9
    (tmp_path / ".log.jsonl.swp").touch()  # an editor's
    assert len(list(tmp_path.iterdir())) == 7
    run("linear-probe", tmp_path)
    kept = [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]
    assert len(kept) == 2
    assert ".log.jsonl.swp" in kept
    assert any(name.startswith(".results.svg.") for name in kept)


def test_a_run_folder_has_one_writer_and_a_dead_one_lets_go(run, tmp_path):
    script = """
import sys, time
from pathlib import Path
from robustft.train.lock import one_writer
with one_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(p for p in sys.path if p))
    holder = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(InputError, match=f"written by process {holder.pid} on"):
        run("linear-probe", tmp_path)
    assert not (tmp_path / "log.jsonl").exists()
    holder.kill()
    holder.communicate()
    assert (tmp_path / "run.lock").exists()
    assert run("linear-probe", tmp_path).log.records


def test_a_checkpoint_is_written_when_minutes_have_passed(run, tmp_path, monkeypatch):
    from robustft.train import asked

    clock = iter(range(0, 10**6, 50))  # each look at the clock is 50 s after the last
    monkeypatch.setattr(asked, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    run("ft", tmp_path, epochs=3, save_minutes=3.0, keep=9)
    assert len(checkpoint.complete(tmp_path)) == 2
    run("ft", tmp_path / "never", epochs=3, save_minutes=0, keep=9)
    assert checkpoint.complete(tmp_path / "never") == []


def test_templates_are_part_of_what_a_run_is(run, tmp_path, world, monkeypatch):
    run("flyp", tmp_path, save_frequency=1)
    monkeypatch.setattr(world, "templates", [*world.templates[:-1], "no {}."])
    with pytest.raises(InputError, match="another run: templates: "):
        run("flyp", tmp_path, resume="latest")


def test_labels_and_weights_are_part_of_what_a_run_is(run, tmp_path, world, monkeypatch):
    run("ft", tmp_path, save_frequency=1)
    other = world.train.subset(range(len(world.train)), split="train")
    other.labels = other.labels.flip(0)
    with pytest.raises(InputError, match=r"another run: train\.labels: [^;]*$"):
        run("ft", tmp_path, resume="latest", train=other)
    model = copy.deepcopy(world.clip.model)
    with torch.no_grad():
        model.logit_scale += 1e-3
    monkeypatch.setattr(world, "clip", dataclasses.replace(world.clip, model=model))
    with pytest.raises(InputError, match=r"another run: model\.weights: [^;]*$"):
        run("ft", tmp_path, resume="latest")


def test_best_weights_of_a_later_step_are_not_taken_over(run, same, tmp_path, monkeypatch):
    """The best of the third epoch is on disk; a run that resumes in the second forgets it."""
    from robustft.train import loop

    config = {"select": "best", "epochs": 4, "val_frequency": 1, "save_frequency": 1, "keep": 9}
    scores = iter([0.2, 0.3, 0.9])
    monkeypatch.setattr(loop.Validation, "top1", lambda *_: next(scores))
    with pytest.raises(Stopped):
        run("ft", tmp_path, on_step=stop_at(9), **config)
    scores = iter([0.4, 0.1])
    resumed = run("ft", tmp_path, resume=tmp_path / "checkpoints" / "step-00000006", **config)
    assert resumed.val_top1 == 0.4


def test_one_flipped_byte_of_the_best_weights_is_found_and_named(run, tmp_path):
    config = {"select": "best", "epochs": 3, "val_frequency": 1, "save_frequency": 1}
    with pytest.raises(Stopped):
        run("ft", tmp_path, on_step=stop_at(4), **config)
    best = tmp_path / "best.safetensors"
    whole = best.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    accuracy = whole.index(b"val:top1") + len("val:top1") + 4 + 2  # a digit of the share
    for place in (accuracy, 8 + length + 1000, len(whole) - 3):
        best.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(InputError, match=rf"{re.escape(str(best))} is damaged: .*; remove"):
            run("ft", tmp_path, resume="latest", **config)
    best.write_bytes(whole)
    assert run("ft", tmp_path, resume="latest", **config).val_top1 is not None


def test_failed_save_leaves_the_earlier_checkpoints(run, tmp_path, monkeypatch):
    """A disk that fills up: torch's and safetensors' own errors become OSError."""
    real = state.write
    calls = []

    def full(folder, *rest):
        calls.append(folder)
        real(folder, *rest)
        if len(calls) == 3:
            raise RuntimeError("No space left on device")

    monkeypatch.setattr(state, "write", full)
    with pytest.raises(OSError, match=r"cannot write checkpoint .*No space left"):
        run("ft", tmp_path, save_steps=1)
    left = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert left == ["step-00000001", "step-00000002"]
    monkeypatch.undo()
    run("ft", tmp_path, resume="latest", save_steps=1, keep=1)
    assert [p.name for p in checkpoint.complete(tmp_path)] == ["step-00000006"]
