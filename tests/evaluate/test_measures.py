"""Calibration, per-class and geometry measures against scikit-learn, torchmetrics and NumPy."""

import math

import numpy as np
import pytest
import torch

from robustft.errors import InputError
from robustft.evaluate import adaptive_ece, brier, difference_spread, ece, linear_cka, nll, top1
from robustft.evaluate.metrics import mean_per_class, measures, predictions, top_k

from .test_metrics import data, softmax


@pytest.mark.parametrize("k", [1, 3, 5])
def test_top_k_is_scikit_learns(k):
    metrics = pytest.importorskip("sklearn.metrics")
    z, y = data(c=12)
    expected = metrics.top_k_accuracy_score(y.numpy(), z.numpy(), k=k, labels=range(12))
    assert top_k(z, y, k) == pytest.approx(expected)
    part = [11, 2, 3, 5, 7, 8]
    inside = torch.isin(y, torch.tensor(part))
    among = sorted(part)
    expected = metrics.top_k_accuracy_score(
        y[inside].numpy(), z[inside][:, among].numpy(), k=k, labels=among
    )
    assert top_k(z[inside], y[inside], k, part) == pytest.approx(expected)
    assert 0.4 < expected < 1


def test_a_model_that_says_the_same_of_all_classes_is_in_no_top_five():
    y = torch.arange(8)
    assert top_k(torch.zeros(8, 8), y) == 0.0
    z = torch.eye(8)
    z[3] = torch.nan
    z[4, 0] = torch.inf
    assert top_k(z, y, k=7) == 6 / 8
    with pytest.raises(InputError, match="k: got 0"):
        top_k(z, y, k=0)


@pytest.mark.filterwarnings("ignore:y_pred contains classes")
def test_mean_per_class_is_scikit_learns_balanced_accuracy():
    metrics = pytest.importorskip("sklearn.metrics")
    z, y = data(c=12)
    y[y == 5] = 4  # class 5 is predicted and never true
    expected = metrics.balanced_accuracy_score(y.numpy(), z.argmax(1).numpy())
    assert mean_per_class(z, y) == pytest.approx(expected)
    assert abs(expected - top1(z, y)) > 1e-3


def test_nll_and_brier_are_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    z, y = data(507)
    p = softmax(z.double().numpy())
    assert nll(z, y) == pytest.approx(metrics.log_loss(y.numpy(), p, labels=range(9)))
    score = ((p - np.eye(9)[y.numpy()]) ** 2).sum(axis=1).mean()
    assert brier(torch.as_tensor(p), y) == pytest.approx(score)
    two = torch.as_tensor(p[:, :2] / p[:, :2].sum(axis=1, keepdims=True))
    # scikit-learn's of two classes has half of it.
    expected = metrics.brier_score_loss((y == 0).numpy(), two[:, 0].numpy())
    assert brier(two, (y != 0).long()) == pytest.approx(2 * expected)
    with pytest.raises(InputError, match="logits"):
        brier(z, y)


def test_the_calibration_error_is_torchmetrics():
    torchmetrics = pytest.importorskip("torchmetrics.functional.classification")
    z, y = data(507)
    p = z.double().softmax(1)
    expected = torchmetrics.multiclass_calibration_error(p, y, num_classes=9, n_bins=15)
    assert ece(p, y) == pytest.approx(float(expected), abs=1e-6)


def test_the_adaptive_error_is_over_equally_many_samples():
    z, y = data(509)
    p = softmax(z.double().numpy())
    confidence, hit = p.max(1), p.argmax(1) == y.numpy()
    parts = np.array_split(np.argsort(confidence), 10)
    gaps = [len(i) / 509 * abs(hit[i].mean() - confidence[i].mean()) for i in parts]
    assert {len(i) for i in parts} == {50, 51}
    assert adaptive_ece(torch.as_tensor(p), y, bins=10) == pytest.approx(sum(gaps))
    few = torch.as_tensor(p[:3]), y[:3]
    assert adaptive_ece(*few) == pytest.approx(abs(hit[:3] - confidence[:3]).mean())


def test_the_adaptive_error_does_not_depend_on_the_order_of_equals():
    """A model that always says ½ and is right half of the time is calibrated."""
    p = torch.full((60, 2), 0.5)
    y = torch.tensor([0] * 30 + [1] * 30)
    assert adaptive_ece(p, y) == pytest.approx(0.0)
    assert adaptive_ece(p, torch.zeros(60, dtype=torch.long)) == pytest.approx(0.5)


@pytest.mark.parametrize("subset", [None, [0, 2, 3, 5, 6, 8]])
def test_a_result_line_has_all_measures_of_the_softmax_over_the_sets_classes(subset, monkeypatch):
    monkeypatch.setattr("robustft.evaluate.metrics._NUMBERS", 9 * 100)  # batches of 100 rows
    z, y = data(507)
    if subset is not None:
        keep = torch.isin(y, torch.tensor(subset))
        z, y = z[keep], y[keep]
    classes = subset or list(range(9))
    own = torch.tensor([classes.index(int(label)) for label in y])
    p = z[:, classes].double().softmax(1)
    found = measures(predictions(z, y, subset), y, len(classes))
    assert found == pytest.approx(
        {
            "top1": top1(z, y, subset),
            "top5": top_k(z, y, 5, subset),
            "mean-per-class": mean_per_class(z, y, subset),
            "ece": ece(p, own),
            "adaptive-ece": adaptive_ece(p, own),
            "nll": nll(p.log(), own),
            "brier": brier(p, own),
        }
    )
    assert "top5" not in measures(predictions(z, y, subset), y, 5)


def test_measures_of_a_sure_and_of_a_diverged_model():
    y = torch.arange(6)
    sure = measures(predictions(1000 * torch.eye(6), y), y, 6)
    assert sure == {
        **dict.fromkeys(("top1", "top5", "mean-per-class"), 1.0),
        **dict.fromkeys(("ece", "adaptive-ece", "nll", "brier"), 0.0),
    }
    wrong = measures(predictions(1000 * torch.eye(6).roll(1, 0), y), y, 6)
    assert wrong["nll"] == pytest.approx(1000.0), "the log of a probability that float64 lacks"
    assert wrong["brier"] == 2.0
    z = torch.eye(6)
    z[2, 2] = torch.nan
    found = measures(predictions(z, y), y, 6)
    assert (found["top1"], found["top5"]) == (5 / 6, 5 / 6)
    assert all(math.isnan(found[name]) for name in ("ece", "adaptive-ece", "nll", "brier"))


def features(n=31, d=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g), torch.randn(n, d + 2, generator=g)


def test_linear_cka_is_that_of_the_gram_matrices(monkeypatch):
    monkeypatch.setattr("robustft.evaluate.geometry._ROWS", 7)
    a, b = features()
    b = b + a @ torch.ones(5, 7) / 2 + 3  # not about the origin
    centre = np.eye(31) - 1 / 31
    k, m = (centre @ (x @ x.T) @ centre for x in (a.double().numpy(), b.double().numpy()))
    expected = (k * m).sum() / np.linalg.norm(k) / np.linalg.norm(m)
    assert linear_cka(a, b) == pytest.approx(expected)
    assert 0.1 < expected < 0.9
    turn, _ = torch.linalg.qr(features(5, 5)[0])
    assert linear_cka(a, 3 * a @ turn + 7) == pytest.approx(1.0)
    assert math.isnan(linear_cka(a, torch.full((31, 3), 0.1)))


def test_difference_spread_is_0_for_a_translation_and_1_where_all_is_lost(monkeypatch):
    monkeypatch.setattr("robustft.evaluate.geometry._ROWS", 7)
    a, b = features()
    u = (b[:, :5] - a).double().numpy()
    x = a.double().numpy()
    expected = np.sqrt(((u - u.mean(0)) ** 2).sum() / ((x - x.mean(0)) ** 2).sum())
    assert difference_spread(a, b[:, :5]) == pytest.approx(expected)
    assert difference_spread(a, a + 2) == pytest.approx(0.0, abs=1e-6)
    assert difference_spread(a, a) == 0.0
    assert difference_spread(a, torch.full_like(a, 4.0)) == pytest.approx(1.0), "all on one point"
    assert math.isnan(difference_spread(torch.full_like(a, 0.1), a))
    for score in (linear_cka, difference_spread):
        with pytest.raises(InputError, match="got 30 rows"):
            score(a, a[:30])
    with pytest.raises(InputError, match="got 7 columns"):
        difference_spread(a, b)
