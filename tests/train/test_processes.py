"""Two processes on one machine train as one does on the whole batch, whatever the method."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

# Every method, with options under which a few steps show it at work.
RUNS = {
    "ft": ("ft", {}),
    "ft, one left": ("ft", {}),
    "linear-probe": ("linear-probe", {}),
    "lp-ft": ("lp-ft", {"lp_lr": 1e-2}),
    "l2-sp": ("l2-sp", {"alpha": 10.0}),
    "car-ft": ("car-ft", {"alpha": 5.0}),
    "lipsum-ft": ("lipsum-ft", {"texts": 7}),
    "snd": ("snd", {"reference_batch_size": None}),
    "tpgm": ("tpgm", {}),
    "flyp": ("flyp", {}),
    "flyp, labels": ("flyp", {"positives": "label"}),
    "flyp-snd": ("flyp-snd", {"lambda_": 10.0}),
    "replay": ("flyp-replay", {}),
    "dive": ("dive", {"momentum": 0.5, "lambda_": 10.0}),
    "starft": ("starft", {"decay": False, "rho": 5.0}),
    "r-adapter": ("r-adapter", {"drop": 0.0, "ema": 0.0, "alpha": 1.0}),
    "r-adapter, dropping": ("r-adapter", {"drop": 0.5, "drop_mode": "token", "ema": 0.0}),
}

SCRIPT = """
import json, os, sys, torch
from robustft.data import load_dataset, load_reference
from robustft.methods import make_method
from robustft.models import load_clip
from robustft.train import TrainConfig, fit

torch.set_num_threads(1)
clip = load_clip("robustft-tiny", "glyphs")
digits = load_dataset("digits", "train")
# The last step of an epoch has three images, or the one of "one left".
counts = {run: 41 if "one left" in run else 43 for run in json.loads(sys.argv[2])}
train = {n: digits.subset(range(n), split="train").preloaded(clip.preprocess_val) for n in (41, 43)}
val = load_dataset("digits", "val").subset(range(33), split="val").preloaded(clip.preprocess_val)
pairs = load_reference("glyphs", n=40).preloaded(clip.preprocess_val)
config = TrainConfig(epochs=2, batch_size=20 // int(os.environ["WORLD_SIZE"]), lr=1e-3, wd=0.01,
    warmup=0, device="cpu", eps=1e-3)  # a small eps would turn rounding into whole steps
for run, (name, options) in json.loads(sys.argv[2]).items():
    method = make_method(name, **options)
    fit(method, clip, train[counts[run]], val, config,
        os.path.join(sys.argv[1], run), templates=["a {}.", "the {}"], progress=False,
        reference=pairs if method.needs_reference else None)
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights and validation accuracies by run, of one process and of two."""
    from safetensors.torch import load_file

    folder = tmp_path_factory.mktemp("processes")
    script = folder / "script.py"
    script.write_text(SCRIPT)
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    found = []
    for count in (1, 2):
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
        given = [str(script), str(folder / str(count)), json.dumps(RUNS)]
        done = subprocess.run(
            [sys.executable, *launch, *given], cwd=folder,
            env=environment, capture_output=True, text=True, timeout=500, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        runs = {run: load_file(folder / str(count) / run / "model.safetensors") for run in RUNS}
        logs = {
            run: [
                json.loads(line).get("val:top1")
                for line in (folder / str(count) / run / "log.jsonl").read_text().splitlines()
            ]
            for run in RUNS
        }
        found.append((runs, logs))
    return found


def test_every_method_is_here():
    from robustft.methods import METHODS

    trained = {name for name, method in METHODS.items() if method.published.epochs}
    assert {name for name, _ in RUNS.values()} == trained


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_two_processes_equal_one(weights, run):
    (one, one_log), (two, two_log) = ((runs[run], logs[run]) for runs, logs in weights)
    assert max((one[k] - two[k]).abs().max().item() for k in one) < 1e-5
    assert one_log == two_log
    assert sum(accuracy is not None for accuracy in one_log) >= 2
