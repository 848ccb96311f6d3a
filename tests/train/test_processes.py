"""Two processes on one machine train as one does, where the loss is a mean over images."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import os, sys, torch
from robustft.data import load_dataset
from robustft.methods import make_method
from robustft.models import load_clip
from robustft.train import TrainConfig, fit

torch.set_num_threads(1)
torch.manual_seed(0)
clip = load_clip("robustft-tiny")
digits = load_dataset("digits", "train").subset(range(40), split="train")
config = TrainConfig(epochs=2, batch_size=20 // int(os.environ["WORLD_SIZE"]), lr=1e-3, wd=0.01,
    warmup=0, device="cpu")
fit(make_method("ft"), clip, digits.preloaded(clip.preprocess_val), None, config, sys.argv[1],
    templates=["a {}."], progress=False)
"""


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    from safetensors.torch import load_file

    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    weights = []
    for count in (1, 2):
        folder = tmp_path / str(count)
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
        command = [sys.executable, *launch, str(script), str(folder)]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        weights.append(load_file(folder / "model.safetensors"))
    start = max((weights[0][k] - weights[1][k]).abs().max().item() for k in weights[0])
    assert start < 2e-3  # AdamW turns rounding in tiny gradients into steps of up to lr
    close = [
        (weights[0][k] - weights[1][k]).abs().le(1e-5).float().mean().item() for k in weights[0]
    ]
    assert sum(close) / len(close) > 0.99
