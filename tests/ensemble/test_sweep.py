"""A sweep predicts at every α what the whole mixture does, in little memory."""

from __future__ import annotations

import math

import pytest
import torch

from robustft.accuracy import NONE, predict
from robustft.ensemble import ALPHAS, output_ensemble, sweep_outputs
from robustft.errors import InputError


def logits(rows=700, classes=37, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [3 * torch.randn(rows, classes, generator=g) for _ in range(2)]


@pytest.mark.parametrize("space", ["probability", "logit"])
@pytest.mark.parametrize("subset", [None, [30, 2, 5, 11]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_it_is_the_mixture_at_every_weight(space, subset, dtype, monkeypatch):
    monkeypatch.setattr("robustft.ensemble.sweep._NUMBERS", 37 * 50)  # batches of 50 rows
    tuned, plain = (z.to(dtype) for z in logits())
    options = {"temperature_finetuned": 0.7, "temperature_zeroshot": 1.9, "class_subset": subset}
    found = sweep_outputs(tuned, plain, ALPHAS, space=space, **options)
    for alpha, one in zip(ALPHAS, found, strict=True):
        whole = output_ensemble(tuned, plain, alpha, space=space, **options)
        assert torch.equal(one.predicted, predict(whole))
        torch.testing.assert_close(one.confidence, whole.amax(dim=1))


@pytest.mark.parametrize("space", ["probability", "logit"])
def test_rows_without_a_prediction(space):
    tuned, plain = logits(5)
    tuned[0, 3] = math.nan
    plain[1, 2] = math.nan
    tuned[2] = -math.inf
    tuned[3, :36] = -math.inf
    plain[3, 36] = -math.inf
    alphas = (0.0, 0.5, 1.0)
    found = dict(zip(alphas, sweep_outputs(tuned, plain, alphas, space=space), strict=True))
    for alpha, one in found.items():
        whole = output_ensemble(tuned, plain, alpha, space=space)
        assert torch.equal(one.predicted, predict(whole))
    assert found[0.5].predicted[:2].tolist() == [NONE, NONE]
    assert found[0.0].predicted[0] != NONE, "the other model is not looked at"
    assert found[1.0].predicted[1] != NONE


@pytest.mark.parametrize("space", ["probability", "logit"])
@pytest.mark.parametrize("subset", [None, [30, 2, 5, 11, 17, 20, 36]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_it_says_of_labels_is_the_mixtures(space, subset, dtype, monkeypatch):
    monkeypatch.setattr("robustft.ensemble.sweep._NUMBERS", 37 * 50)
    tuned, plain = (z.to(dtype) for z in logits())
    tuned[5] *= 200  # probabilities of 0 in float32
    among = torch.arange(37) if subset is None else torch.tensor(subset)
    labels = among[torch.arange(700) % len(among)]
    options = {"temperature_finetuned": 0.7, "temperature_zeroshot": 1.9, "class_subset": subset}
    found = sweep_outputs(tuned, plain, ALPHAS, labels=labels, space=space, **options)
    for alpha, one in zip(ALPHAS, found, strict=True):
        whole = output_ensemble(tuned.double(), plain.double(), alpha, space=space, **options)
        own = whole[torch.arange(700), labels]
        assert torch.equal(one.rank == 0, one.predicted == labels)
        ahead = (whole > own[:, None]).sum(dim=1)
        assert (one.rank != ahead).float().mean() < 0.01, "but for ties in float32"
        tolerance = {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(one.log_likelihood.exp(), own.to(dtype), **tolerance)
        squares = whole.square().sum(dim=1).to(dtype)
        torch.testing.assert_close(one.squares, squares, **tolerance)
        assert bool(torch.isfinite(one.log_likelihood).all())
    labels[3] = 37 if subset is None else 0
    with pytest.raises(InputError, match=r"labels: got values|labels: got class 0"):
        sweep_outputs(tuned, plain, [0.5], labels=labels, class_subset=subset)


def test_of_a_row_that_predicts_nothing_the_label_comes_last():
    tuned, plain = logits(4)
    tuned[0, 3] = math.nan
    plain[1, 2] = math.nan
    labels = torch.tensor([3, 0, 0, 0])
    ends = sweep_outputs(tuned, plain, (0.0, 0.5, 1.0), labels=labels)
    assert ends[1].rank[:2].tolist() == [37, 37]
    assert ends[1].log_likelihood[:2].isnan().all()
    assert ends[1].squares[:2].isnan().all()
    assert ends[0].log_likelihood[0].isfinite()
    assert ends[2].squares[1].isfinite(), "the other model is not looked at"


def test_memory_is_a_batch_whatever_the_number_of_weights():
    tuned, plain = logits(20_000, 1000)
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        bytes = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            parts = found if isinstance(found, tuple | list) else (found,)
            views = (tuned.untyped_storage().data_ptr(), plain.untyped_storage().data_ptr())
            for part in parts:
                if (
                    isinstance(part, torch.Tensor)
                    and part.untyped_storage().data_ptr() not in views
                ):
                    Largest.bytes = max(Largest.bytes, part.untyped_storage().nbytes())
            return found

    with Largest():
        sweep_outputs(tuned, plain, ALPHAS, labels=torch.arange(20_000) % 1000)
    assert 0 < Largest.bytes <= 2**21, "80 MB of logits, 2 MB at once"


def test_arguments():
    tuned, plain = logits(4)
    for alphas, message in (((), "alphas: got none"), ((0.5, 2.0), "alpha: got 2.0")):
        with pytest.raises(InputError, match=message):
            sweep_outputs(tuned, plain, alphas)
    with pytest.raises(InputError, match="logits_zeroshot: got 36 classes"):
        sweep_outputs(tuned, plain[:, :36], [0.5])
    with pytest.raises(InputError, match="temperature_zeroshot"):
        sweep_outputs(tuned, plain, [0.5], temperature_zeroshot=0.0)
    with pytest.raises(InputError, match="space: got 'odds'"):
        sweep_outputs(tuned, plain, [0.5], space="odds")
