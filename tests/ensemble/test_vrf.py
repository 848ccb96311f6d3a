"""VRF against numpy in float64, its limits, its selection rule, and what it refuses."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import robustft
from robustft import VRF
from robustft.ensemble.vrf_select import QUANTILES, SPREADS, choose_modulation, sample_weight
from robustft.errors import InputError


@dataclass
class Fake:
    features: torch.Tensor
    logits: torch.Tensor
    labels: torch.Tensor
    split: str = "val"


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def make(n, seed, c=7, d=13, ft_skill=3.0, zs_skill=1.2):
    """Features, the fine-tuned and the zero-shot logits, labels: two models of unequal skill."""
    centers = torch.randn(c, d, generator=torch.Generator().manual_seed(99))
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(c, (n,), generator=g)
    features = centers[labels] + 0.6 * torch.randn(n, d, generator=g)
    one_hot = torch.nn.functional.one_hot(labels, c).float()
    ft = ft_skill * one_hot + torch.randn(n, c, generator=g)
    zs = zs_skill * one_hot + torch.randn(n, c, generator=g)
    return features, ft, zs, labels


TRAIN, VAL, TEST = make(409, 0), make(149, 1), make(83, 2)


def fitted(train=TRAIN, val=VAL, **options):
    names = ("val_features", "val_logits_finetuned", "val_logits_zeroshot", "val_labels")
    return VRF(**options).fit(*train, **dict(zip(names, val, strict=True)))


def truth(vrf, train, query, k, squared=True, normalize=True):
    """The whole method in float64 numpy, given the fitted a, b and temperatures."""
    f, ft, zs, y = (t.double().numpy() for t in train)
    q, q_ft, q_zs, _ = (t.double().numpy() for t in query)
    if normalize:
        f, q = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (f, q))
    failures = f[(ft.argmax(1) == y) & (zs.argmax(1) != y)]
    d = np.sort(((q[:, None] - failures[None]) ** 2).sum(-1), axis=1)[:, k - 1]
    if not squared:
        d = np.sqrt(d)
    w = 1 / (1 + np.exp((d - vrf.a_) / vrf.b_))
    p_ft, p_zs = (
        softmax(q_ft / vrf.temperature_finetuned_),
        softmax(q_zs / vrf.temperature_zeroshot_),
    )
    return failures, d, w, w[:, None] * p_ft + (1 - w[:, None]) * p_zs


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("k", [None, 5])
def test_vrf_is_the_paper_s_formula(squared, normalize, k):
    vrf = fitted(squared=squared, normalize=normalize, k=k)
    failures, d, w, p = truth(vrf, TRAIN, TEST, k or 1, squared, normalize)
    assert vrf.k_ == (k or 1)
    assert 20 < len(failures) < 409
    np.testing.assert_allclose(vrf.failures_.double().numpy(), failures, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(vrf.distance(TEST[0]).double().numpy(), d, rtol=1e-5)
    np.testing.assert_allclose(vrf.weight(TEST[0]).double().numpy(), w, rtol=1e-4)
    got = vrf.predict_proba(*TEST[:3])
    np.testing.assert_allclose(got.double().numpy(), p, rtol=2e-4, atol=1e-7)
    torch.testing.assert_close(got.sum(dim=1), torch.ones(83))
    assert (vrf.predict(*TEST[:3]).numpy() == p.argmax(axis=1)).all()
    log = vrf.predict_proba(*TEST[:3], log=True)
    np.testing.assert_allclose(log.double().numpy(), np.log(p), rtol=1e-4, atol=2e-4)


def test_the_squared_distance_of_unit_rows_is_two_minus_two_cosines():
    vrf = fitted(k=3)
    q = torch.nn.functional.normalize(TEST[0].double(), dim=1)
    cosine = (q @ vrf.failures_.double().T).sort(dim=1, descending=True).values[:, 2]
    torch.testing.assert_close(vrf.distance(TEST[0]).double(), 2 - 2 * cosine, rtol=1e-4, atol=1e-6)
    plain = fitted(k=3, squared=False).distance(TEST[0])
    torch.testing.assert_close(plain.square(), vrf.distance(TEST[0]), rtol=1e-5, atol=1e-7)


def test_temperatures_match_confidence_to_accuracy_on_validation_data():
    vrf = fitted()
    for logits, temperature in (
        (VAL[1], vrf.temperature_finetuned_),
        (VAL[2], vrf.temperature_zeroshot_),
    ):
        confidence = softmax(logits.double().numpy() / temperature).max(axis=1).mean()
        accuracy = float((logits.argmax(dim=1) == VAL[3]).double().mean())
        assert abs(confidence - accuracy) < 1e-5
    assert fitted(calibrate=False).temperature_finetuned_ == 1.0


def test_the_limits_of_the_weight():
    ft, zs = TEST[1].softmax(dim=1), TEST[2].softmax(dim=1)
    for a, b, want in ((1e9, 1.0, ft), (-1e9, 1.0, zs), (1.0, 1e12, 0.5 * ft + 0.5 * zs)):
        vrf = VRF(a=a, b=b, calibrate=False).fit(*TRAIN)
        torch.testing.assert_close(vrf.predict_proba(*TEST[:3]), want, rtol=1e-5, atol=1e-8)


def test_the_weight_is_a_half_at_a_and_falls_with_the_distance():
    d = torch.linspace(0, 4, 101)
    w = sample_weight(d, 1.5, 0.6)
    assert (w.diff() < 0).all()
    assert float(sample_weight(torch.tensor([1.5]), 1.5, 0.6)) == 0.5
    # Published a and b of ImageNet.
    some = sample_weight(torch.tensor([0.4, 0.62, 1.0, 1.63, 2.0]), 1.5, 0.6)
    torch.testing.assert_close(
        some, torch.tensor([0.862, 0.813, 0.697, 0.446, 0.303]), atol=6e-4, rtol=0
    )
    vrf = fitted()
    distance, weight = vrf.distance(TEST[0]), vrf.weight(TEST[0])
    assert (weight[distance.argsort()].diff() <= 0).all()
    assert weight.std() > 0.01


def test_k_is_a_share_of_the_failures_rounded_down_and_at_least_one():
    count = len(fitted().failures_)
    assert fitted(p=0.1).k_ == max(1, count // 10)
    assert fitted(p=1.0).k_ == count
    assert fitted(p=1e-6).k_ == 1
    assert fitted(k=10_000).k_ == count  # fewer failures than k


def test_scaling_the_features_changes_nothing():
    plain = fitted(normalize=False)
    for factor in (10.0, 1e-3):
        train, val, test = ((x[0] * factor, *x[1:]) for x in (TRAIN, VAL, TEST))
        scaled = fitted(train, val, normalize=False)
        assert scaled.a_ == pytest.approx(plain.a_ * factor**2, rel=1e-4)
        assert scaled.b_ == pytest.approx(plain.b_ * factor**2, rel=1e-4)
        assert scaled.selection_.quantile == plain.selection_.quantile
        torch.testing.assert_close(
            scaled.predict_proba(*test[:3]), plain.predict_proba(*TEST[:3]), rtol=1e-4, atol=1e-6
        )


def test_the_choice_of_a_and_b_is_the_documented_rule():
    vrf = fitted()
    chosen = vrf.selection_
    _, d, _, _ = truth(vrf, TRAIN, VAL, 1)
    p_ft = softmax(VAL[1].double().numpy() / vrf.temperature_finetuned_)
    p_zs = softmax(VAL[2].double().numpy() / vrf.temperature_zeroshot_)
    hits = {}
    for q in QUANTILES:
        for m in SPREADS:
            w = 1 / (1 + np.exp((d - np.quantile(d, q)) / (m * d.std())))
            mixed = w[:, None] * p_ft + (1 - w[:, None]) * p_zs
            hits[q, m] = int((mixed.argmax(1) == VAL[3].numpy()).sum())
    best = [key for key, value in hits.items() if value == max(hits.values())]
    gentle = min({m for _, m in best}, key=lambda m: (abs(math.log(m / 2)), -m))
    assert (chosen.quantile, chosen.spreads) == (min(q for q, m in best if m == gentle), gentle)
    assert chosen.tied == len(best)
    assert chosen.accuracy == pytest.approx(max(hits.values()) / 149)
    assert vrf.a_ == pytest.approx(np.quantile(d, chosen.quantile), rel=1e-5)
    assert vrf.b_ == pytest.approx(chosen.spreads * d.std(), rel=1e-5)


def test_accuracy_comes_before_gentleness():
    # The fine-tuned model is right exactly below a distance of 0.85, the zero-shot one above it,
    # and where both are wrong-headed a gentle weight follows the more confident, wrong one.
    n = 200
    d = torch.linspace(0, 1, n)
    labels = torch.zeros(n, dtype=torch.long)
    near = (d < 0.9).unsqueeze(1)
    right, wrong = torch.tensor([[0.55, 0.45]]), torch.tensor([[0.42, 0.58]])
    ft, zs = torch.where(near, right, wrong), torch.where(near, wrong, right)
    chosen = choose_modulation(d, ft, zs, labels)
    assert chosen.spreads < 2
    gentle = sample_weight(d, float(np.quantile(d.numpy(), 0.5)), 2 * float(d.std()))
    mixed = gentle.unsqueeze(1) * ft + (1 - gentle.unsqueeze(1)) * zs
    assert chosen.accuracy > float((mixed.argmax(dim=1) == labels).double().mean())


@pytest.mark.parametrize("noise", [0.0, 1e-8])
def test_equal_distances_are_no_trouble(noise):
    """Nor are those that differ by rounding: b is in the distances' own unit."""
    distances = 0.3 + noise * torch.arange(20).double().cos()
    chosen = choose_modulation(
        distances,
        TEST[1][:20].softmax(1),
        TEST[2][:20].softmax(1),
        TEST[3][:20],
    )
    assert chosen.b == pytest.approx(0.3 * chosen.spreads, rel=1e-6)
    assert chosen.a == pytest.approx(0.3, rel=1e-6)


def test_without_a_failure_both_models_get_half(tmp_path):
    train = (*TRAIN[:2], TRAIN[1], TRAIN[3])  # the zero-shot model is the fine-tuned one
    with pytest.warns(UserWarning, match="corrects no zero-shot error"):
        vrf = fitted(train)
    assert vrf.failures_.shape == (0, 13)
    assert (vrf.weight(TEST[0]) == 0.5).all()
    assert vrf.distance(TEST[0]).isinf().all()
    want = 0.5 * (TEST[1] / vrf.temperature_finetuned_).softmax(1)
    want += 0.5 * (TEST[2] / vrf.temperature_zeroshot_).softmax(1)
    got = vrf.predict_proba(*TEST[:3])
    torch.testing.assert_close(got, want)
    vrf.save(tmp_path / "vrf.safetensors")
    assert torch.equal(VRF.load(tmp_path / "vrf.safetensors").predict_proba(*TEST[:3]), got)


def test_a_class_subset_is_taken_before_the_softmax():
    vrf = fitted()
    subset = torch.tensor([5, 1, 3])
    got = vrf.predict_proba(*TEST[:3], class_subset=subset)
    assert (got[:, [0, 2, 4, 6]] == 0).all()
    cut = [z[:, subset].double().numpy() for z in TEST[1:3]]
    w = vrf.weight(TEST[0]).double().numpy()[:, None]
    want = w * softmax(cut[0] / vrf.temperature_finetuned_)
    want += (1 - w) * softmax(cut[1] / vrf.temperature_zeroshot_)
    np.testing.assert_allclose(got[:, subset].double().numpy(), want, rtol=1e-5, atol=1e-8)
    assert set(vrf.predict(*TEST[:3], class_subset=subset).tolist()) <= {1, 3, 5}


@pytest.mark.parametrize("options", [{}, {"k": 4, "squared": False}, {"a": 1.5, "b": 0.6}])
def test_a_loaded_vrf_predicts_the_same_bits(tmp_path, options):
    vrf = fitted(**options)
    path = tmp_path / "vrf.safetensors"
    vrf.save(path)
    again = VRF.load(path)
    assert torch.equal(again.predict_proba(*TEST[:3]), vrf.predict_proba(*TEST[:3]))
    assert torch.equal(again.distance(TEST[0]), vrf.distance(TEST[0]))
    for name in ("a_", "b_", "k_", "temperature_finetuned_", "temperature_zeroshot_", "selection_"):
        assert getattr(again, name) == getattr(vrf, name)
    assert [p.name for p in tmp_path.iterdir()] == ["vrf.safetensors"]


def test_loading_something_else_is_refused(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(FileNotFoundError):
        VRF.load(tmp_path / "absent.safetensors")
    (tmp_path / "text").write_text("no tensors here, only words, and quite a few of them")
    save_file({"failures": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    fitted().save(tmp_path / "vrf.safetensors")
    data = (tmp_path / "vrf.safetensors").read_bytes()
    (tmp_path / "cut").write_bytes(data[:-64])
    for name in ("text", "other.safetensors", "cut"):
        with pytest.raises(InputError, match=name):
            VRF.load(tmp_path / name)


def test_fit_refuses_bad_data():
    nan = TRAIN[0].clone()
    nan[17, 3] = math.nan
    with pytest.raises(InputError, match=r"features.*first: 17"):
        fitted((nan, *TRAIN[1:]))
    inf = VAL[2].clone()
    inf[5] = math.inf
    with pytest.raises(InputError, match="val_logits_zeroshot"):
        fitted(val=(*VAL[:2], inf, VAL[3]))
    with pytest.raises(InputError, match=r"logits_finetuned.*408"):
        fitted((TRAIN[0], TRAIN[1][:-1], *TRAIN[2:]))
    with pytest.raises(InputError, match="val_features"):
        fitted(val=(VAL[0][:, :-1], *VAL[1:]))
    with pytest.raises(InputError, match="labels"):
        fitted((*TRAIN[:3], TRAIN[3] + 1))
    with pytest.raises(InputError, match="expected validation data"):
        VRF().fit(*TRAIN)
    with pytest.raises(InputError, match="val_labels"):
        VRF().fit(
            *TRAIN, val_features=VAL[0], val_logits_finetuned=VAL[1], val_logits_zeroshot=VAL[2]
        )


def test_options_are_checked():
    for bad in ({"p": 0.0}, {"p": 1.5}, {"k": 0}, {"a": 1.0}, {"a": 1.0, "b": 0.0}, {"k": 1.5}):
        with pytest.raises(InputError):
            VRF(**bad)
    with pytest.raises(InputError, match="not fitted"):
        VRF().predict_proba(*TEST[:3])
    vrf = fitted()
    with pytest.raises(InputError, match="features"):
        vrf.distance(TEST[0][:, :5])
    with pytest.raises(InputError, match="logits_zeroshot"):
        vrf.predict_proba(TEST[0], TEST[1], TEST[2][:, :5])


def test_a_nan_sample_gets_nan_and_leaves_the_others_alone():
    vrf = fitted()
    features = TEST[0].clone()
    features[3, 0] = math.nan
    got = vrf.predict_proba(features, *TEST[1:3])
    assert got[3].isnan().all()
    rest = torch.arange(83) != 3
    assert torch.equal(got[rest], vrf.predict_proba(*TEST[:3])[rest])
    predicted = vrf.predict(features, *TEST[1:3])
    assert predicted[3] == -1
    assert torch.equal(predicted[rest], vrf.predict(*TEST[:3])[rest])


def test_fit_outputs_is_fit_and_refuses_test_data():
    def split(data, name="val"):
        features, ft, zs, labels = data
        return Fake(features, ft, labels, name), Fake(features, zs, labels, name)

    train, val = split(TRAIN, "train"), split(VAL)
    vrf = VRF().fit_outputs(*train, val_finetuned=val[0], val_zeroshot=val[1])
    assert torch.equal(vrf.predict_proba(*TEST[:3]), fitted().predict_proba(*TEST[:3]))
    bad = split(VAL, "test")
    for pair in ((bad[0], val[1]), (val[0], bad[1])):
        with pytest.raises(InputError, match="validation"):
            VRF().fit_outputs(*train, val_finetuned=pair[0], val_zeroshot=pair[1])
    with pytest.raises(InputError, match="same samples"):
        VRF().fit_outputs(train[0], val[1], val_finetuned=val[0], val_zeroshot=val[1])


def test_half_precision_features_and_the_lazy_name():
    assert robustft.VRF is VRF
    vrf = fitted((TRAIN[0].half(), *TRAIN[1:]), (VAL[0].half(), *VAL[1:]))
    got = vrf.predict_proba(TEST[0].half(), *TEST[1:3])
    torch.testing.assert_close(got, fitted().predict_proba(*TEST[:3]), rtol=0, atol=2e-3)
