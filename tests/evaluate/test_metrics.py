"""Accuracy, calibration, the ratio curve and RSA against plain numpy."""

import numpy as np
import pytest
import torch

from robustft.accuracy import correct, predict
from robustft.errors import InputError
from robustft.evaluate import (
    ece,
    fit_temperature,
    nll,
    ratio_curve,
    rsa_scores,
    top1,
    wilson_interval,
)
from robustft.evaluate.metrics import macro_f1, worst_group


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def data(n=211, c=9, seed=0):
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(c, (n,), generator=g)
    logits = 2 * torch.nn.functional.one_hot(labels, c) + torch.randn(n, c, generator=g)
    return logits, labels


def test_top1_counts_hits():
    z, y = data()
    assert top1(z, y) == pytest.approx(np.mean(z.numpy().argmax(1) == y.numpy()))
    assert 0.3 < top1(z, y) < 0.95


def test_top1_restricts_the_classes_before_the_argmax():
    z = torch.tensor([[9.0, 1.0, 2.0], [9.0, 3.0, 2.0], [0.0, 5.0, 4.0]])
    y = torch.tensor([2, 1, 2])
    assert top1(z, y) == 0.0
    assert top1(z, y, class_subset=[2, 1]) == pytest.approx(2 / 3)
    with pytest.raises(InputError, match="class 1"):
        top1(z, y, class_subset=torch.tensor([0, 2]))


def test_a_nan_row_counts_as_wrong():
    z = torch.eye(4)
    z[2, 2] = float("nan")  # argmax would call this a hit
    assert top1(z, torch.arange(4)) == 0.75


@pytest.mark.parametrize("row", [[np.nan] * 4, [np.inf, 0, 0, 0], [-np.inf] * 4, [0, 0, np.nan, 0]])
def test_a_row_without_a_finite_maximum_predicts_no_class(row):
    z = torch.eye(4).repeat(2, 1)
    z[4:] = torch.tensor(row)
    y = torch.arange(4).repeat(2)
    assert predict(z).tolist() == [0, 1, 2, 3, -1, -1, -1, -1]
    assert correct(z, y).tolist() == [True] * 4 + [False] * 4
    assert top1(z, y) == 0.5
    assert top1(z[:, [3, 1, 2, 0]], y, class_subset=[3, 2, 1, 0]) == 0.25
    curve = ratio_curve(torch.zeros(8), z, torch.eye(4).repeat(2, 1), y, edges=[-1, 1], min_count=1)
    assert curve[0]["accuracy_finetuned"] == 0.5
    assert curve[0]["ratio"] == 0.5


def test_a_nan_outside_the_subset_does_not_matter_and_masked_classes_are_no_nan():
    z = torch.tensor([[torch.nan, 1.0, 2.0], [-torch.inf, 3.0, -torch.inf]])
    y = torch.tensor([2, 1])
    assert top1(z, y, class_subset=[1, 2]) == 1.0
    assert predict(z).tolist() == [-1, 1]


def test_the_interval_of_a_share_is_wilson_s():
    # Table values of Newcombe (1998): 81 of 263, 15 of 148, 0 of 20, 29 of 29.
    for hits, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (29, 29, 0.8830, 1.0),
    ):
        assert wilson_interval(hits, n) == pytest.approx((low, high), abs=6e-5)
    assert wilson_interval(5, 10, 0.5)[0] > wilson_interval(5, 10)[0]
    for bad in ((3, 2), (-1, 2), (0, 0)):
        with pytest.raises(InputError):
            wilson_interval(*bad)


def test_top1_refuses_what_cannot_be_right():
    z, y = data()
    for bad in ((z, y[:-1]), (z, y + 1), (z, y.float()), (z[0], y), (z[:0], y[:0])):
        with pytest.raises(InputError):
            top1(*bad)


def test_nll_is_cross_entropy_and_log_probabilities_are_logits():
    z, y = data()
    p = softmax(z.double().numpy() / 1.7)
    want = -np.log(p[np.arange(211), y.numpy()]).mean()
    assert nll(z, y, temperature=1.7) == pytest.approx(want, rel=1e-9)
    assert nll(torch.as_tensor(np.log(p)), y) == pytest.approx(want, rel=1e-9)


def test_ece_is_the_binned_gap():
    z, y = data(507)
    p = softmax(z.double().numpy())
    confidence, hit = p.max(1), p.argmax(1) == y.numpy()
    want = 0.0
    for b in range(10):
        inside = (confidence > b / 10) & (confidence <= (b + 1) / 10)
        if inside.any():
            want += inside.mean() * abs(hit[inside].mean() - confidence[inside].mean())
    assert ece(torch.as_tensor(p), y, bins=10) == pytest.approx(want, rel=1e-9)
    assert want > 0.01
    with pytest.raises(InputError, match="logits"):
        ece(z, y)


def test_a_confidence_on_an_edge_is_in_the_bin_below():
    """Bins are (0, ½] and (½, 1]: a sure hit at ½ and a miss at ¾ are in two of them."""
    probabilities, labels = torch.tensor([[0.5, 0.5], [0.75, 0.25]]), torch.tensor([0, 1])
    assert ece(probabilities, labels, bins=2) == pytest.approx((0.5 + 0.75) / 2)


def test_the_fitted_temperature_balances_confidence_and_accuracy():
    z, y = data(507)
    temperature = fit_temperature(3 * z, y)
    confidence = softmax(3 * z.double().numpy() / temperature).max(1).mean()
    assert confidence == pytest.approx(top1(z, y), abs=1e-5)


def test_ratio_curve_in_given_bins():
    g = torch.Generator().manual_seed(0)
    ft, y = data(507, seed=1)
    zs = ft + 2.5 * torch.randn(ft.shape, generator=g)
    d = torch.rand(507, generator=g)
    d[3] = torch.inf
    curve = ratio_curve(d, ft, zs, y, edges=[0.2, 0.5, 0.9, 2.0], min_count=1)
    assert len(curve) == 3
    for point, (low, high) in zip(curve, [(0.2, 0.5), (0.5, 0.9), (0.9, 2.0)], strict=True):
        inside = ((d >= low) & (d < high)).numpy()
        hit_ft = (ft.argmax(1) == y).numpy()[inside].mean()
        hit_zs = (zs.argmax(1) == y).numpy()[inside].mean()
        assert point["n"] == inside.sum()
        assert point["distance"] == pytest.approx(d.double().numpy()[inside].mean())
        assert point["accuracy_finetuned"] == pytest.approx(hit_ft)
        assert point["accuracy_zeroshot"] == pytest.approx(hit_zs)
        assert point["ratio"] == pytest.approx(hit_ft / hit_zs)


def test_ratio_curve_by_default_covers_all_finite_samples():
    ft, y = data(507, seed=1)
    d = torch.linspace(0, 1, 507)
    curve = ratio_curve(d, ft, ft, y, bins=7, min_count=1)
    assert sum(p["n"] for p in curve) == 507
    assert len(curve) == 7
    assert all(p["ratio"] == 1.0 for p in curve)
    assert [p["distance"] for p in curve] == sorted(p["distance"] for p in curve)
    assert ratio_curve(torch.full((507,), torch.inf), ft, ft, y) == []


def test_ratio_curve_leaves_out_small_bins_and_undefined_ratios():
    ft, y = data(100, seed=1)
    wrong = torch.nn.functional.one_hot((y + 1) % 9, 9).float()
    d = torch.cat([torch.zeros(95), torch.ones(5)])
    curve = ratio_curve(d, ft, wrong, y, edges=[-0.5, 0.5, 1.5], min_count=6)
    assert [p["n"] for p in curve] == [95]
    assert curve[0]["ratio"] is None
    with pytest.raises(InputError, match="edges"):
        ratio_curve(d, ft, wrong, y, edges=[1.0, 0.0])


def test_rsa_is_the_correlation_of_pairwise_distances():
    g = torch.Generator().manual_seed(0)
    a = torch.randn(31, 5, generator=g)
    b = a + 0.5 * torch.randn(31, 5, generator=g)
    got = rsa_scores(a, b)

    def pairs(x, cosine):
        x = x.double().numpy()
        i, j = np.triu_indices(len(x), 1)
        if cosine:
            x = x / np.linalg.norm(x, axis=1, keepdims=True)
            return 1 - (x[i] * x[j]).sum(1)
        return np.linalg.norm(x[i] - x[j], axis=1)

    for key, cosine in (("RSA:euclidean", False), ("RSA:cosine", True)):
        want = np.corrcoef(pairs(a, cosine), pairs(b, cosine))[0, 1]
        assert got[key] == pytest.approx(want, abs=1e-4)
        assert want < 0.99
    shifted = rsa_scores(a, a + torch.randn(1, 5, generator=g))
    assert shifted["RSA:euclidean"] == pytest.approx(1.0, abs=1e-5)
    assert shifted["RSA:cosine"] < 0.99
    with pytest.raises(InputError, match="30"):
        rsa_scores(a, b[:30])


def test_macro_f1_is_scikit_learns_over_the_classes_that_occur():
    from sklearn.metrics import f1_score

    logits, labels = data(c=12)
    labels[labels == 5] = 4  # class 5 is predicted and never true
    said = logits.argmax(1)
    there = labels.unique().numpy()
    expected = f1_score(
        labels.numpy(), said.numpy(), average="macro", labels=there, zero_division=0
    )
    assert macro_f1(logits, labels) == pytest.approx(expected)
    part = [0, 3, 7]
    inside = torch.isin(labels, torch.tensor(part))
    said = torch.tensor(part)[logits[inside][:, part].argmax(1)]
    expected = f1_score(labels[inside].numpy(), said.numpy(), average="macro", zero_division=0)
    assert macro_f1(logits[inside], labels[inside], part) == pytest.approx(expected)
    logits[:] = torch.nan
    assert macro_f1(logits, labels) == 0.0


def test_worst_group_is_the_least_accuracy_and_its_group():
    logits, labels = data()
    groups = torch.arange(len(labels)) % 5 - 1
    by_group = {g: top1(logits[groups == g], labels[groups == g]) for g in range(4)}
    accuracy, group = worst_group(logits, labels, groups)
    assert accuracy == min(by_group.values()) == by_group[group]
    logits[groups == -1] = torch.nan  # images in no group do not count
    assert worst_group(logits, labels, groups) == (accuracy, group)
    with pytest.raises(InputError, match="no image in any group"):
        worst_group(logits, labels, torch.full_like(labels, -1))
