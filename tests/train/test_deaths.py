"""A process of several dies: the others end, and what it leaves is resumed by as many or others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from robustft.errors import InputError, InputWarning
from robustft.train import checkpoint

# Eleven steps: the last of an epoch of 43 images has three.
SETTINGS = {"epochs": 1, "warmup": 3, "save_steps": 2, "save_frequency": 0, "keep": 9}
SCRIPT = """
import json, os, signal, sys, time
from pathlib import Path
import torch
from robustft.data import load_dataset
from robustft.methods import make_method
from robustft.models import load_clip
from robustft.train import TrainConfig, fit

torch.set_num_threads(1)
torch.manual_seed(0)
folder, method, world = Path(sys.argv[1]), sys.argv[2], int(os.environ["WORLD_SIZE"])
clip = load_clip("robustft-tiny")
digits = load_dataset("digits", "train").subset(range(43), split="train")

def on_step(done):
    if os.environ["RANK"] == "1" and done == 5 and not (folder / "died").exists():
        (folder / "died").write_text(str(time.time()))
        os.kill(os.getpid(), signal.SIGKILL)

config = TrainConfig(batch_size=4 // world, lr=1e-3, wd=0.01, device="cpu", log_frequency=1,
    eps=1e-3, **json.loads(sys.argv[3]))
fit(make_method(method), clip, digits.preloaded(clip.preprocess_val), None, config, folder / "run",
    progress=False, templates=["a {}.", "the {}"], on_step=on_step, resume=sys.argv[4] or None)
"""


@pytest.fixture
def launch(tmp_path):
    """launch(processes, method, resume): a run in tmp_path/run under torchrun."""
    (tmp_path / "script.py").write_text(SCRIPT)
    paths = os.pathsep.join(path for path in sys.path if path)

    def go(processes, method="ft", resume="latest", *options):
        how = ["--standalone", f"--nproc-per-node={processes}", *options]
        given = [tmp_path / "script.py", tmp_path, method, json.dumps(SETTINGS), resume]
        return subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", *how, *given],
            env=dict(os.environ, PYTHONPATH=paths, OMP_NUM_THREADS="1"),
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip

    return go


def weights(folder):
    return load_file(folder / "run" / "model.safetensors")


def furthest(one, two):
    return max((one[name] - two[name]).abs().max().item() for name in one)


def test_a_killed_process_ends_the_others_and_one_alone_goes_on(launch, tmp_path, run, world):
    done = launch(2)
    seconds = time.time() - float((tmp_path / "died").read_text())
    assert done.returncode != 0
    assert seconds < 60
    assert "Signal 9 (SIGKILL) received" in done.stderr
    assert "rank      : 1" in done.stderr
    saved = checkpoint.complete(tmp_path / "run")
    assert [path.name for path in saved] == ["step-00000002", "step-00000004"]
    # In a process of its own: the same batches of four, two of which each process had.
    train = world.raw.subset(range(43), split="train").preloaded(world.clip.preprocess_val)
    same = {**SETTINGS, "train": train, "val": False, "eps": 1e-3}
    templates, world.templates = world.templates, ["a {}.", "the {}"]
    try:
        with pytest.raises(InputError, match=r"batch_size × processes: 4 there, 2 here"):
            run("ft", tmp_path / "run", batch_size=2, resume="latest", **same)
        with pytest.warns(InputWarning, match="checkpoint is of 2 processes, and 1 go on"):
            run("ft", tmp_path / "run", batch_size=4, resume="latest", **same)
        whole = run("ft", batch_size=4, **same).classifier.state_dict()
    finally:
        world.templates = templates
    assert furthest(whole, weights(tmp_path)) < 1e-5


@pytest.mark.slow
def test_torchrun_starts_them_again_and_the_bits_are_those_of_an_unbroken_run(launch, tmp_path):
    assert launch(2, "flyp", "latest", "--max-restarts=1").returncode == 0
    broken = weights(tmp_path)
    for path in sorted((tmp_path / "run").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert (tmp_path / "died").exists()
    assert launch(2, "flyp", "").returncode == 0
    whole = weights(tmp_path)
    assert all(torch.equal(broken[name], whole[name]) for name in whole)


@pytest.mark.slow
def test_two_go_on_where_one_stopped(launch, tmp_path):
    """The last checkpoint of one process, taken away, leaves the one before."""
    assert launch(1, "ft", "").returncode == 0
    whole = weights(tmp_path)
    last = checkpoint.complete(tmp_path / "run")[3:]
    assert [path.name for path in last] == ["step-00000008", "step-00000010"]
    for path in last:
        path.rename(tmp_path / path.name)
    (tmp_path / "died").touch()
    done = launch(2, "ft", "latest")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the checkpoint is of 1 processes, and 2 go on") == 1
    two = weights(tmp_path)
    assert furthest(whole, two) < 1e-5
    assert furthest(whole, two) > 0


METHOD = """
import os
from robustft.methods import METHODS
from robustft.methods.ft import FT

class Failing(FT):
    name = "failing"

    def loss(self, module, batch):
        if os.environ["RANK"] == "1":
            raise OSError(28, "No space left on device", "shard-7")
        return super().loss(module, batch)

METHODS.register(Failing)
"""


def test_an_error_of_one_process_is_said_and_the_others_end(tmp_path):
    (tmp_path / "failing.py").write_text(METHOD)
    paths = os.pathsep.join(path for path in sys.path if path)
    options = ["train", "--method-module", "failing.py", "--method", "failing"]
    options += ["--model", "robustft-tiny", "--pretrained", "glyphs", "--data-location", "digits"]
    options += ["--id", "digits", "--logs-dir", "logs", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         "-m", "robustft", *options],
        cwd=tmp_path, env=dict(os.environ, PYTHONPATH=paths, OMP_NUM_THREADS="1"),
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "robustft: No space left on device (shard-7)" in done.stderr
    lost = "robustft: process 0 lost another one, whose own message says why" in done.stderr
    ended = "closing signal SIGTERM" in done.stderr  # by torchrun, which may be the faster one
    assert lost or ended, done.stderr
    assert "Traceback" not in done.stderr.split("elastic")[0], done.stderr
