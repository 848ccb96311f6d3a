"""Mistakes that only cost time are said."""

import warnings

import pytest
import torch

from robustft.cli.app import run as command
from robustft.errors import InputWarning
from robustft.methods import make_method
from robustft.train import forewarn


def test_a_rate_far_from_the_methods_own_is_pointed_out():
    with pytest.warns(InputWarning, match="lr: got 0.01, ft was published with 3e-05"):
        forewarn.learning_rate(make_method("ft"), 1e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        forewarn.learning_rate(make_method("ft"), 1e-5)
        forewarn.learning_rate(make_method("linear-probe"), 1e-2)


def test_an_average_longer_than_the_run_is_pointed_out(run):
    with pytest.warns(InputWarning, match="ema: after all 4 steps 100% of the average"):
        run("r-adapter", options={"rank": 2})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        forewarn.average(make_method("r-adapter"), 5000)
        forewarn.average(make_method("ft"), 1)


def test_memory_that_is_not_there_is_pointed_out(monkeypatch):
    parameters = [torch.zeros(1000)]
    monkeypatch.setattr(forewarn, "free_memory", lambda device: 11_999)
    with pytest.warns(InputWarning, match="memory: gradients and optimiser need 0.0 GB"):
        forewarn.memory(parameters, torch.device("cpu"))
    monkeypatch.setattr(forewarn, "free_memory", lambda device: 12_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        forewarn.memory(parameters, torch.device("cpu"))


def test_a_result_that_is_the_zero_shot_model_is_pointed_out(tmp_path, capsys):
    """A rate so small that nothing moves."""
    tiny = ("--model", "robustft-tiny", "--pretrained", "glyphs", "--device", "cpu")
    more = ("--epochs", "1", "--batch-size", "512", "--logs", str(tmp_path), "--aug", "none")
    assert command(["train", *tiny, *more, "--method", "ft", "--lr", "1e-12"]) == 0
    said = capsys.readouterr().err
    assert "the result predicts the zero-shot model's class on all" in said
