"""`as_released` is the authors' pipeline, redone in NumPy; otherwise a test split is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from robustft.ensemble import VRF, matching_temperature
from robustft.ensemble.vrf_release import released_k, released_temperature
from robustft.errors import InputError
from robustft.evaluate import Outputs

CLASSES, WIDTH = 8, 12


def outputs(count, split, seed, strength):
    """What a model says: the strength is what its logits know of the labels."""
    labels = torch.randint(0, CLASSES, (count,), generator=torch.Generator().manual_seed(seed))
    g = torch.Generator().manual_seed(seed + round(100 * strength))
    logits = 2 * torch.randn(count, CLASSES, generator=g)
    logits[torch.arange(count), labels] += strength
    features = torch.nn.functional.normalize(torch.randn(count, WIDTH, generator=g), dim=1)
    return Outputs(features, logits, labels, split, "set")


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def temperature(logits, accuracy):
    """False position between 0.1 and 10; an end beyond which the root lies is moved by 1.1."""
    low, high = 0.1, 10.0
    while True:
        confidence = [softmax(logits / t).max(axis=1).mean() for t in (low, high)]
        gaps = [abs(c - accuracy) for c in confidence]
        share = gaps[0] / sum(gaps)
        middle = low + share * (high - low)
        if abs(softmax(logits / middle).max(axis=1).mean() - accuracy) <= 1e-3:
            return middle
        if confidence[1] > accuracy:
            high *= 1.1
        elif confidence[0] < accuracy:
            low /= 1.1
        elif gaps[0] < gaps[1]:
            high = middle
        else:
            low = middle


@pytest.mark.parametrize("features", ["finetuned", "zeroshot"])
def test_the_released_pipeline(features):
    train = [outputs(3000, "train", 0, s) for s in (2.0, 4.0)]
    test = [outputs(500, "test", 1, s) for s in (2.0, 4.0)]
    shifted = [outputs(400, "test", 2, s) for s in (2.0, 3.0)]
    vrf = VRF(as_released=True, features=features)
    vrf.fit_outputs(train[1], train[0], val_finetuned=test[1], val_zeroshot=test[0])

    right = [(o.logits.argmax(1) == o.labels).numpy() for o in train]
    failures = right[1] & ~right[0]
    of = 1 if features == "finetuned" else 0
    bank = train[of].features.numpy()[failures].astype(np.float64)
    k = round(1000 * len(bank) / 3000)
    assert (vrf.k_, len(vrf.failures_), vrf.a_, vrf.b_) == (k, len(bank), 1.5, 0.6)
    temperatures = [
        temperature(
            o.logits.double().numpy(), float((o.logits.argmax(1) == o.labels).double().mean())
        )
        for o in test
    ]
    assert vrf.temperature_zeroshot_ == pytest.approx(temperatures[0], rel=1e-5)
    assert vrf.temperature_finetuned_ == pytest.approx(temperatures[1], rel=1e-5)
    queries = shifted[of].features.double().numpy()
    squared = ((queries[:, None] - bank[None]) ** 2).sum(axis=2)
    d = np.sort(squared, axis=1)[:, k - 1]
    w = 1 / (1 + np.exp((d - 1.5) / 0.6))[:, None]
    probabilities = [
        softmax(o.logits.double().numpy() / t) for o, t in zip(shifted, temperatures, strict=True)
    ]
    expected = (1 - w) * probabilities[0] + w * probabilities[1]
    found = vrf.predict_proba(shifted[of].features, shifted[1].logits, shifted[0].logits)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-6)
    assert vrf.name.endswith("-as-released")


def test_k_is_of_all_samples():
    # ImageNet: some 290,000 of 1,281,167 give 226, where the paper's rule gives 290.
    assert released_k(290_000, 1_281_167) == 226
    assert released_k(3, 10_000) == 1
    assert released_k(50, 50) == 50


def test_a_test_split_is_refused_otherwise():
    train = [outputs(300, "train", 0, s) for s in (2.0, 4.0)]
    test = [outputs(200, "test", 1, s) for s in (2.0, 4.0)]
    with pytest.raises(InputError, match="nothing is chosen on the data that is reported"):
        VRF().fit_outputs(train[1], train[0], val_finetuned=test[1], val_zeroshot=test[0])
    with pytest.raises(InputError, match="nothing is chosen on the data that is reported"):
        VRF(as_released=True).fit_outputs(
            test[1], test[0], val_finetuned=test[1], val_zeroshot=test[0]
        )


def test_its_search_solves_the_same_equation_less_exactly():
    one = outputs(2000, "val", 3, 3.0)
    found = released_temperature(one.logits, one.labels)
    exact = matching_temperature(one.logits, one.labels)
    assert found == pytest.approx(exact, rel=0.05)
    assert found != pytest.approx(exact, rel=1e-6)
    wrong = torch.full_like(one.labels, CLASSES - 1)
    logits = one.logits.clone()
    logits[:, CLASSES - 1] = -50.0  # never right: no confidence is as low
    with pytest.raises(InputError, match="finds no temperature"):
        released_temperature(logits, wrong)


def test_another_neighbor_is_as_fitted_anew(tmp_path):
    train = [outputs(1000, "train", 0, s) for s in (2.0, 4.0)]
    val = [outputs(300, "val", 1, s) for s in (2.0, 4.0)]
    pairs = {"val_finetuned": val[1], "val_zeroshot": val[0]}
    first = VRF().fit_outputs(train[1], train[0], **pairs)
    for options in ({"k": 7}, {"p": 0.05}):
        one = first.with_neighbor(**options, **pairs)
        anew = VRF(**options).fit_outputs(train[1], train[0], **pairs)
        assert (one.k_, one.a_, one.b_) == (anew.k_, anew.a_, anew.b_)
        assert one.selection_ == anew.selection_
        assert one.failures_ is first.failures_
    with pytest.raises(InputError, match="a, b: got None"):
        first.with_neighbor(k=3)
    fixed = VRF(a=1.0, b=0.2).fit_outputs(train[1], train[0], **pairs)
    assert fixed.with_neighbor(k=3).a_ == 1.0
    path = tmp_path / "vrf.safetensors"
    VRF(as_released=True).fit_outputs(train[1], train[0], **pairs).save(path)
    assert VRF.load(path).as_released
