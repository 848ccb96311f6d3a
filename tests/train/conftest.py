"""A tiny model with random weights and a few real digits: enough to see a method train."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch


@pytest.fixture(scope="session")
def world():
    """clip, train (45 digits), val (30), and 40 reference pairs, all in memory."""
    from robustft.data import load_dataset, load_reference
    from robustft.models import load_clip

    torch.set_num_threads(1)
    torch.manual_seed(0)
    clip = load_clip("robustft-tiny")
    digits = load_dataset("digits", "train")
    picture = clip.preprocess_val
    return SimpleNamespace(
        clip=clip,
        raw=digits.subset(range(45), split="train"),
        train=digits.subset(range(45), split="train").preloaded(picture),
        val=load_dataset("digits", "val").subset(range(30), split="val").preloaded(picture),
        reference=load_reference("glyphs", n=40).preloaded(picture),
        templates=["a photo of the digit {}.", "a {}.", "the number {}."],
    )


@pytest.fixture(scope="session")
def run(world):
    """Train a method on the world; keywords override the configuration."""
    from robustft.methods import make_method
    from robustft.train import TrainConfig, Trainer

    def go(name, run_dir=None, *, options=None, train=None, val=True, resume=None, **config):
        on_step, store = config.pop("on_step", None), config.pop("store", None)
        reference = config.pop("reference", world.reference)
        settings = dict(epochs=2, batch_size=16, lr=1e-3, warmup=0, wd=0.01, device="cpu")
        settings |= dict(log_frequency=1, val_frequency=0, save_frequency=0) | config
        trainer = Trainer(
            make_method(name, **(options or {})),
            world.clip,
            world.train if train is None else train,
            world.val if val else None,
            TrainConfig(**settings),
            run_dir,
            templates=world.templates,
            reference=reference,
            resume=resume,
            store=store,
            progress=False,
            on_step=on_step,
        )
        trainer.classifier = trainer.run()
        return trainer

    return go


@pytest.fixture(scope="session")
def same():
    """Whether two classifiers have the same bits."""

    def check(one, other):
        a, b = one.state_dict(), other.state_dict()
        assert a.keys() == b.keys()
        return all(torch.equal(a[name], b[name]) for name in a)

    return check
