"""ema: the average of the trained weights is what is validated and the result."""

import pytest
import torch

from robustft.errors import InputError, InputWarning
from robustft.train import checkpoint

CONFIG = {"batch_size": 5, "lr": 3e-3}


class Stopped(Exception):
    pass


def test_the_result_is_the_average_of_the_weights_after_each_step(run, monkeypatch):
    """shadow ← m·shadow + (1−m)·weights from the first weights on, in float64 here."""
    from robustft.methods.ft import FT

    momentum, live = 0.7, []
    plain = FT.after_step

    def noting(self, module):
        plain(self, module)
        live.append({k: v.double().clone() for k, v in module.classifier.state_dict().items()})

    monkeypatch.setattr(FT, "after_step", noting)
    averaged = run("ft", ema=momentum, **CONFIG)
    start = run("zero-shot").classifier.state_dict()
    assert len(live) == 18
    result = averaged.classifier.state_dict()
    moved = 0
    for name, tensor in result.items():
        shadow = start[name].double()
        for state in live:
            shadow = momentum * shadow + (1 - momentum) * state[name]
        torch.testing.assert_close(tensor.double(), shadow, rtol=1e-4, atol=1e-6)
        moved += int(not torch.equal(tensor, live[-1][name].float()))
    assert moved > 10


@pytest.mark.parametrize("name", ["ft", "flyp", "lp-ft", "linear-probe"])
def test_training_itself_does_not_notice_the_average(run, same, name):
    """A momentum of 0 keeps the last weights, bit for bit; another leads to other weights."""
    plain = run(name, val_frequency=1, **CONFIG)
    last = run(name, ema=0.0, val_frequency=1, **CONFIG)
    assert same(plain.classifier, last.classifier)
    averaged = run(name, ema=0.9, val_frequency=1, **CONFIG)
    assert not same(plain.classifier, averaged.classifier)

    def losses(trainer):
        return [r["loss"] for r in trainer.log.records if "loss" in r]

    assert losses(plain) == losses(averaged)


@pytest.mark.parametrize(("name", "stop"), [("ft", 11), ("lp-ft", 7), ("lp-ft", 18), ("dive", 12)])
def test_a_resumed_average_has_the_same_bits(run, same, tmp_path, name, stop):
    def pull(done):
        if done == stop + 1:
            raise Stopped

    config = {"ema": 0.8, "val_frequency": 1, **CONFIG}
    whole = run(name, **config)
    with pytest.raises(Stopped):
        run(name, tmp_path, save_steps=stop, on_step=pull, **config)
    resumed = run(name, tmp_path, resume="latest", **config)
    assert same(whole.classifier, resumed.classifier)
    assert whole.val_top1 == resumed.val_top1
    with pytest.raises(InputError, match=r"another run: config\.ema: 0\.8 there, 0\.7 here"):
        run(name, tmp_path, resume="latest", **(config | {"ema": 0.7}))


def test_validation_and_the_best_weights_are_of_the_average(run, world, tmp_path):
    from robustft.models import load_classifier
    from robustft.train.validate import top1

    config = {"ema": 0.5, "val_frequency": 1, "select": "best", "epochs": 3, **CONFIG}
    trainer = run("ft", tmp_path, **config)
    found = top1(trainer.classifier, world.val, batch_size=64, device="cpu")
    assert trainer.val_top1 == found
    kept = load_classifier(tmp_path / "model.safetensors", world.clip)
    assert top1(kept, world.val, batch_size=64, device="cpu") == found


def test_a_damaged_or_missing_average_is_named(run, tmp_path):
    run("ft", tmp_path, ema=0.5, save_frequency=1, **CONFIG)
    (newest,) = checkpoint.complete(tmp_path)[-1:]
    file = newest / "average.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(InputError, match=r"average\.safetensors is damaged"):
        run("ft", tmp_path, ema=0.5, resume="latest", **CONFIG)
    file.unlink()
    with pytest.raises(InputError, match=r"average\.safetensors is missing"):
        run("ft", tmp_path, ema=0.5, resume="latest", **CONFIG)


def test_a_method_with_an_average_of_its_own_takes_no_second_one(run):
    from robustft.cli.materials import method_of
    from robustft.cli.train_options import TrainOptions

    with pytest.raises(InputError, match=r"ema: got 0\.9, .*: r-adapter averages"):
        run("r-adapter", ema=0.9)
    assert method_of(TrainOptions(method="r-adapter", ema=0.9)).config.ema == 0.9
    assert method_of(TrainOptions(method="r-adapter")).config.ema == 0.999
    with pytest.raises(InputError, match="--ema: got it beside --option ema"):
        method_of(TrainOptions(method="r-adapter", ema=0.9, option=["ema=0.5"]))


def test_an_average_longer_than_the_run_is_said(run):
    with pytest.warns(InputWarning, match=r"ema: after all 6 steps 99% of the average"):
        run("ft", ema=0.999, batch_size=15)
    with pytest.raises(InputError, match="ema"):
        run("ft", ema=1.0)
