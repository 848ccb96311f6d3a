"""VRF's ablations against numpy in float64: the weight, the space, the bank; plain numbers."""

import itertools
import math

import numpy as np
import pytest
import torch

from robustft import VRF
from robustft.ensemble.vrf_select import QUANTILES, SPREADS, sample_weight, share_of
from robustft.errors import InputError

from .test_vrf import TEST, TRAIN, VAL, fitted, softmax

FORMS = list(itertools.product(("sigmoid", "linear", "binary"), ("probability", "logit")))


def weight_of(d, a, b, omega):
    if omega == "linear":
        return np.minimum(np.maximum(-b * (d - a), 0), 1)
    return (d < a).astype(float) if omega == "binary" else 1 / (1 + np.exp((d - a) / b))


def distances(queries, bank, k):
    q, rows = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, bank))
    return np.sort(((q[:, None] - rows[None]) ** 2).sum(-1), axis=1)[:, k - 1]


def mixed(w, ft, zs, space):
    w = w[:, None]
    if space == "logit":
        return softmax(w * ft + (1 - w) * zs)
    return w * softmax(ft) + (1 - w) * softmax(zs)


@pytest.mark.parametrize(("omega", "space"), FORMS)
@pytest.mark.parametrize("bank", ["failures", "all"])
def test_every_form_is_the_paper_s_formula(omega, space, bank):
    vrf = fitted(omega=omega, space=space, bank=bank, k=5)
    f, ft, zs, y = (t.double().numpy() for t in TRAIN)
    q, q_ft, q_zs, _ = (t.double().numpy() for t in TEST)
    rows = f if bank == "all" else f[(ft.argmax(1) == y) & (zs.argmax(1) != y)]
    assert len(vrf.failures_) == len(rows)
    d = distances(q, rows, 5)
    np.testing.assert_allclose(vrf.distance(TEST[0]).double().numpy(), d, rtol=1e-5)
    w = weight_of(d, vrf.a_, vrf.b_, omega)
    assert 0 < w.mean() < 1
    np.testing.assert_allclose(vrf.weight(TEST[0]).double().numpy(), w, rtol=1e-4, atol=1e-6)
    z_ft, z_zs = q_ft / vrf.temperature_finetuned_, q_zs / vrf.temperature_zeroshot_
    want = mixed(w, z_ft, z_zs, space)
    got = vrf.predict_proba(*TEST[:3])
    np.testing.assert_allclose(got.double().numpy(), want, rtol=2e-4, atol=1e-7)
    log = vrf.predict_proba(*TEST[:3], log=True)
    np.testing.assert_allclose(log.double().numpy(), np.log(want), rtol=1e-4, atol=2e-4)
    subset = torch.tensor([5, 1, 3])
    cut = vrf.predict_proba(*TEST[:3], class_subset=subset)
    want = mixed(w, z_ft[:, subset], z_zs[:, subset], space)
    np.testing.assert_allclose(cut[:, subset].double().numpy(), want, rtol=2e-4, atol=1e-7)
    assert (cut[:, [0, 2, 4, 6]] == 0).all()


@pytest.mark.parametrize(("omega", "space"), FORMS)
def test_the_choice_follows_the_rule_in_every_form(omega, space):
    vrf = fitted(omega=omega, space=space)
    f, ft, zs, y = (t.double().numpy() for t in TRAIN)
    v, v_ft, v_zs, labels = (t.double().numpy() for t in VAL)
    d = distances(v, f[(ft.argmax(1) == y) & (zs.argmax(1) != y)], 1)
    z_ft, z_zs = v_ft / vrf.temperature_finetuned_, v_zs / vrf.temperature_zeroshot_
    best = None
    for m in SPREADS if omega != "binary" else SPREADS[:1]:
        for q in QUANTILES:
            middle, b = np.quantile(d, q), m * d.std()
            a, b = (middle + 2 * b, 1 / (4 * b)) if omega == "linear" else (middle, b)
            p = mixed(weight_of(d, a, b, omega), z_ft, z_zs, space)
            hits = int((p.argmax(1) == labels).sum())
            if best is None or hits > best[0]:
                best = (hits, q, m, a, b)
    chosen = vrf.selection_
    assert (chosen.quantile, chosen.spreads) == best[1:3]
    assert chosen.accuracy == pytest.approx(best[0] / len(labels))
    assert (vrf.a_, vrf.b_) == pytest.approx(best[3:], rel=1e-5)


def test_the_forms_agree_where_they_should():
    d = torch.linspace(0, 4, 401)
    linear = sample_weight(d, 1.5 + 2 * 0.6, 1 / (4 * 0.6), "linear")
    assert float(linear[150]) == pytest.approx(0.5)
    slope = (linear[151] - linear[149]) / (d[151] - d[149])
    assert float(slope) == pytest.approx(-1 / (4 * 0.6), rel=1e-4)
    steep = sample_weight(d, 1.5, 1e-9)
    assert torch.equal(sample_weight(d, 1.5, 1.0, "binary")[d != 1.5], steep[d != 1.5])
    for omega in ("linear", "binary"):
        assert (sample_weight(d, 1.5, 0.6, omega).diff() <= 0).all()
        assert sample_weight(torch.tensor([torch.nan]), 1.5, 0.6, omega).isnan().all()
        assert float(sample_weight(torch.tensor([torch.inf]), 1.5, 0.6, omega)) == 0.0


@pytest.mark.parametrize("space", ["probability", "logit"])
def test_the_hard_switch_gives_each_sample_one_model(space):
    vrf = VRF(a=0.3, omega="binary", space=space, calibrate=False).fit(*TRAIN)
    near = vrf.distance(TEST[0]) < 0.3
    assert 0 < int(near.sum()) < len(near)
    want = torch.where(near[:, None], TEST[1].softmax(1), TEST[2].softmax(1))
    torch.testing.assert_close(vrf.predict_proba(*TEST[:3]), want)
    masked = TEST[1].clone()
    masked[:, 2] = -torch.inf  # of the one model, also where the other has the weight
    got = vrf.predict_proba(TEST[0], masked, TEST[2])
    assert not got.isnan().any()
    torch.testing.assert_close(got[~near], want[~near])
    assert (got[near][:, 2] == 0).all()


def test_a_nan_sample_gets_nan_in_every_form():
    for omega, space in FORMS:
        vrf = fitted(omega=omega, space=space)
        features, ft = TEST[0].clone(), TEST[1].clone()
        features[3, 0], ft[5, 1] = math.nan, math.nan
        got = vrf.predict_proba(features, ft, TEST[2])
        bad = torch.zeros(len(got), dtype=torch.bool)
        bad[[3, 5]] = True
        assert torch.equal(got.isnan().all(dim=1), bad)
        assert torch.equal(got.isnan().any(dim=1), bad)


def test_results_are_named_after_what_departs_from_the_method():
    assert VRF().name == "vrf"
    assert VRF(space="logit", bank="all").name == "vrf-logit-all"
    assert VRF(omega="linear").name == "vrf-linear"


def test_a_share_that_is_whole_but_for_rounding_is_whole():
    assert share_of(0.29, 100) == 29  # 28.999999999999996
    for thousandths in range(1, 1001):
        for count in (1, 7, 100, 409, 1000, 50_000, 1_281_167):
            want = thousandths * count // 1000
            assert share_of(thousandths / 1000, count) == want, (thousandths, count)
    for count in (3, 300, 3_000_003):
        assert share_of(1 / 3, count) == count // 3
    assert share_of(0.2899999, 100) == 28
    train = [torch.cat([x] * 2) for x in TRAIN]
    vrf = fitted(train, p=0.29)
    exact = math.floor(29 * len(vrf.failures_) / 100 + 1e-6)
    assert vrf.k_ == exact


def test_numbers_of_numpy_and_torch_are_numbers():
    want = VRF(p=0.5, k=3, a=1.5, b=0.5, calibrate=False).fit(*TRAIN).predict_proba(*TEST[:3])
    for real, whole in ((np.float32, np.int64), (np.float64, np.uint8), (torch.tensor, np.int32)):
        vrf = VRF(p=real(0.5), k=whole(3), a=real(1.5), b=real(0.5), calibrate=np.bool_(False))
        assert torch.equal(vrf.fit(*TRAIN).predict_proba(*TEST[:3]), want)
        assert type(vrf.k) is int
        assert type(vrf.a) is float


@pytest.mark.parametrize(
    "bad",
    [
        {"omega": "cosine"},
        {"space": "odds"},
        {"bank": None},
        {"a": 1.0, "omega": "linear"},
        {"b": 1.0, "omega": "binary"},
        {"squared": "no"},
        {"calibrate": 2},
        {"p": "0.1"},
        {"p": math.nan},
        {"k": np.float64(2.0)},
        {"k": True},
        {"a": math.inf, "b": 1.0},
    ],
)
def test_options_that_are_none_are_refused_by_name(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        VRF(**bad)
