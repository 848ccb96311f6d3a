"""Weights spread over two processes train as whole ones do, and a checkpoint of them is resumed."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from robustft.errors import InputError
from robustft.methods import METHODS

RUNS = {
    "ft": {},
    "car-ft": {"alpha": 5.0},
    "lipsum-ft": {"texts": 7},
    "snd": {"reference_batch_size": None},
    "flyp": {},
    "flyp-snd": {"lambda_": 10.0},
    "flyp-replay": {},
    "dive": {"momentum": 0.5, "lambda_": 10.0},
    "starft": {"decay": False, "rho": 5.0},
}
SCRIPT = """
import json, sys, torch
from robustft.data import load_dataset, load_reference
from robustft.methods import make_method
from robustft.models import load_clip
from robustft.train import TrainConfig, Trainer
from robustft.train.sharded import local_of

torch.set_num_threads(1)
clip = load_clip("robustft-tiny", "glyphs")
train = load_dataset("digits", "train").subset(range(43), split="train")
train = train.preloaded(clip.preprocess_val)
val = load_dataset("digits", "val").subset(range(33), split="val").preloaded(clip.preprocess_val)
pairs = load_reference("glyphs", n=40).preloaded(clip.preprocess_val)

class Stopped(Exception):
    pass

def trained(name, options, parallel, folder=None, stop=None, precision="fp32", **more):
    def on_step(done):
        if done == stop:
            raise Stopped

    config = TrainConfig(epochs=2, batch_size=10, lr=1e-3, wd=0.01, warmup=0, device="cpu",
        eps=1e-3, grad_clip_norm=0.5, parallel=parallel, save_steps=2, keep=9,
        precision=precision)
    trainer = Trainer(make_method(name, **options), clip, train, val, config, folder,
        templates=["a {}.", "the {}"], progress=False, on_step=on_step,
        reference=pairs if make_method(name).needs_reference else None, **more)
    try:
        weights = trainer.run().state_dict()
    except Stopped:
        return None
    held = sum(local_of(p).numel() for p in trainer.module.parameters())
    return {k: v.clone() for k, v in weights.items()}, trainer.val_top1, held

found = {}
for name, options in json.loads(sys.argv[1]).items():
    one, one_top1, all_held = trained(name, options, "ddp")
    two, two_top1, held = trained(name, options, "fsdp")
    furthest = max((one[k] - two[k]).abs().max().item() for k in one)
    found[name] = [furthest, one_top1 == two_top1, held / all_held]
one, *_ = trained("flyp", {}, "ddp", precision="bf16")
two, *_ = trained("flyp", {}, "fsdp", precision="bf16")
exact, *_ = trained("flyp", {}, "fsdp")
found["bf16"] = [max((a[k] - b[k]).abs().max().item() for k in a)
    for a, b in ((one, two), (one, exact))]
trained("flyp", {}, "fsdp", sys.argv[2], stop=3)
again, *_ = trained("flyp", {}, "fsdp", sys.argv[2], resume="latest")
found["resumed"] = all(torch.equal(again[k], exact[k]) for k in exact)
if torch.distributed.get_rank() == 0:
    print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    (folder / "script.py").write_text(SCRIPT)
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [sys.executable, *launch, "script.py", json.dumps(RUNS), str(folder / "run")],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_method_that_says_so_is_here():
    assert set(RUNS) == {name for name, method in METHODS.items() if method.shardable}


@pytest.mark.slow
@pytest.mark.parametrize("method", RUNS)
def test_spread_weights_train_as_whole_ones(found, method):
    furthest, same_accuracy, held = found[method]
    assert furthest < 1e-5
    assert same_accuracy
    assert held < 0.6


@pytest.mark.slow
def test_spread_weights_have_the_precision_of_the_run(found):
    """Some sums are rounded otherwise, which bfloat16 makes more of; fp32 is further away."""
    apart, from_fp32 = found["bf16"]
    assert apart < from_fp32 / 4


@pytest.mark.slow
def test_a_checkpoint_of_spread_weights_is_resumed_bit_for_bit(found):
    assert found["resumed"]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("ft", {}, "parallel: got fsdp on one process, expected several"),
        ("ft", {"parallel": "deepspeed"}, "parallel: got 'deepspeed', expected one of ddp, fsdp"),
    ],
)
def test_what_cannot_be_spread_is_refused(run, name, settings, message):
    with pytest.raises(InputError, match=message):
        run(name, **({"parallel": "fsdp"} | settings))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("r-adapter", {}, "r-adapter needs whole weights in training; expected ddp"),
        ("flyp", {"ema": 0.9}, "got fsdp with ema, expected one of them"),
        ("flyp", {"grad_cache": 2}, "got fsdp with grad_cache, expected one of them"),
    ],
)
def test_what_does_not_go_with_spread_weights_is_refused(name, settings, message):
    from robustft.methods import make_method
    from robustft.train import TrainConfig
    from robustft.train.sharded import check

    with pytest.raises(InputError, match=message):
        check(make_method(name), TrainConfig(parallel="fsdp", **settings), 2)
