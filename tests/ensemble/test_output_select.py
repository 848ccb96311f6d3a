"""OSE against numpy, its end points, the calibration, and the selection of alpha."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from robustft.ensemble.calibrate import matching_temperature
from robustft.ensemble.output import output_ensemble
from robustft.ensemble.select import ALPHAS, select_alpha, select_output_alpha
from robustft.errors import InputError


@dataclass
class Fake:
    features: torch.Tensor
    logits: torch.Tensor
    labels: torch.Tensor
    split: str = "val"


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def pair(n=127, c=11, seed=0):
    g = torch.Generator().manual_seed(seed)
    return 5 * torch.randn(n, c, generator=g), 5 * torch.randn(n, c, generator=g)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("space", ["probability", "logit"])
def test_output_ensemble_is_the_formula(alpha, space):
    ft, zs = pair()
    got = output_ensemble(
        ft, zs, alpha, temperature_finetuned=0.7, temperature_zeroshot=1.9, space=space
    )
    z_ft, z_zs = ft.double().numpy() / 0.7, zs.double().numpy() / 1.9
    if space == "probability":
        want = alpha * softmax(z_ft) + (1 - alpha) * softmax(z_zs)
    else:
        want = softmax(alpha * z_ft + (1 - alpha) * z_zs)
    np.testing.assert_allclose(got.double().numpy(), want, rtol=3e-6, atol=1e-9)
    log = output_ensemble(
        ft, zs, alpha, temperature_finetuned=0.7, temperature_zeroshot=1.9, space=space, log=True
    )
    np.testing.assert_allclose(log.double().numpy(), np.log(want), rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("space", ["probability", "logit"])
def test_equal_models_give_the_model(space):
    ft, _ = pair()
    for alpha in ALPHAS:
        got = output_ensemble(ft, ft, alpha, space=space)
        torch.testing.assert_close(got, ft.softmax(dim=1), rtol=1e-5, atol=1e-8)


def test_end_points_do_not_see_the_other_model():
    ft, zs = pair()
    wild = torch.full_like(zs, 1e30)
    torch.testing.assert_close(output_ensemble(ft, wild, 1.0), ft.softmax(dim=1))
    torch.testing.assert_close(output_ensemble(wild, zs, 0.0), zs.softmax(dim=1))


def test_a_class_subset_is_taken_before_the_softmax():
    ft, zs = pair()
    subset = torch.tensor([7, 2, 5])
    got = output_ensemble(ft, zs, 0.4, class_subset=subset)
    want = output_ensemble(ft[:, subset], zs[:, subset], 0.4)
    assert torch.equal(got[:, subset], want)
    others = [c for c in range(11) if c not in (2, 5, 7)]
    assert (got[:, others] == 0).all()
    torch.testing.assert_close(got.sum(dim=1), torch.ones(127))
    log = output_ensemble(ft, zs, 0.4, class_subset=subset, log=True)
    assert (log[:, others] == -torch.inf).all()


def test_output_ensemble_refuses():
    ft, zs = pair()
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="alpha"):
            output_ensemble(ft, zs, alpha)
    with pytest.raises(InputError, match="logits_zeroshot"):
        output_ensemble(ft, zs[:5], 0.5)
    with pytest.raises(InputError, match="temperature_zeroshot"):
        output_ensemble(ft, zs, 0.5, temperature_zeroshot=0.0)
    with pytest.raises(InputError, match="space"):
        output_ensemble(ft, zs, 0.5, space="odds")
    with pytest.raises(InputError, match="class_subset"):
        output_ensemble(ft, zs, 0.5, class_subset=[0, 11])


@pytest.mark.parametrize("scale", [0.02, 1.0, 60.0])
def test_the_temperature_makes_confidence_equal_accuracy(scale):
    g = torch.Generator().manual_seed(1)
    z = scale * torch.randn(507, 7, generator=g)
    labels = z.argmax(dim=1)
    labels[: 507 // 3] = torch.randint(7, (507 // 3,), generator=g)
    temperature = matching_temperature(z, labels)
    confidence = softmax(z.double().numpy() / temperature).max(axis=1).mean()
    accuracy = float((z.argmax(dim=1) == labels).double().mean())
    assert abs(confidence - accuracy) < 1e-5


def test_a_perfect_model_is_taken_half_an_error_from_it():
    z = 3 * torch.randn(40, 5, generator=torch.Generator().manual_seed(2))
    temperature = matching_temperature(z, z.argmax(dim=1))
    confidence = softmax(z.double().numpy() / temperature).max(axis=1).mean()
    assert abs(confidence - 39.5 / 40) < 1e-5


def test_a_model_below_chance_warns():
    z = torch.randn(40, 5, generator=torch.Generator().manual_seed(3))
    with pytest.warns(UserWarning, match="no temperature"):
        assert matching_temperature(z, z.argmin(dim=1)) == 1e4


def test_selection_takes_the_best_alpha_and_of_equals_the_one_that_keeps_id():
    labels = torch.zeros(10, dtype=torch.long)

    def with_hits(hits):
        z = torch.zeros(10, 2)
        z[:hits, 0] = 1.0
        z[hits:, 1] = 1.0
        return Fake(torch.zeros(10, 3), z, labels)

    choice = select_alpha({a: with_hits(h) for a, h in [(1.0, 9), (0.6, 9), (0.2, 7), (0.0, 3)]})
    assert choice.alpha == 1.0
    assert choice.tied == (0.6, 1.0)
    assert choice.accuracy == pytest.approx(0.9)
    assert [a for a, _ in choice.curve] == [0.0, 0.2, 0.6, 1.0]


def test_output_selection_matches_a_brute_force_search():
    g = torch.Generator().manual_seed(4)
    labels = torch.randint(5, (211,), generator=g)
    one_hot = torch.nn.functional.one_hot(labels, 5).float()
    ft = one_hot * 1.5 + torch.randn(211, 5, generator=g)
    zs = one_hot * 1.2 + torch.randn(211, 5, generator=g)
    f = torch.zeros(211, 2)
    choice = select_output_alpha(Fake(f, ft, labels), Fake(f, zs, labels))
    scores = []
    for i in range(11):
        p = i / 10 * softmax(ft.double().numpy()) + (1 - i / 10) * softmax(zs.double().numpy())
        scores.append(float((p.argmax(axis=1) == labels.numpy()).mean()))
    best = max(i for i, score in enumerate(scores) if score == max(scores))
    assert choice.alpha == best / 10
    assert choice.accuracy == pytest.approx(max(scores))
    assert 0 < choice.alpha < 1  # two different models: a mixture is best here


@pytest.mark.parametrize("split", ["test", "TEST", "test-r"])
def test_selection_refuses_test_data(split):
    labels = torch.zeros(4, dtype=torch.long)
    good = Fake(torch.zeros(4, 2), torch.zeros(4, 3), labels)
    bad = Fake(torch.zeros(4, 2), torch.zeros(4, 3), labels, split)
    with pytest.raises(InputError, match="nothing is chosen on the data that is reported"):
        select_alpha({0.5: bad})
    for pair_ in ((good, bad), (bad, good)):
        with pytest.raises(InputError, match="validation"):
            select_output_alpha(*pair_)


def test_selection_refuses_outputs_of_different_samples():
    a = Fake(torch.zeros(4, 2), torch.zeros(4, 3), torch.tensor([0, 1, 2, 0]))
    b = Fake(torch.zeros(4, 2), torch.zeros(4, 3), torch.tensor([0, 1, 2, 1]))
    with pytest.raises(InputError, match="same samples"):
        select_output_alpha(a, b)


def outputs_of(logits, labels, split="val"):
    return Fake(torch.zeros(len(logits), 2), logits, labels, split)


def test_a_choice_says_how_little_it_rests_on():
    labels = torch.zeros(20, dtype=torch.long)

    def with_hits(hits):
        z = torch.zeros(20, 2)
        z[:hits, 0], z[hits:, 1] = 1.0, 1.0
        return outputs_of(z, labels)

    choice = select_alpha({0.0: with_hits(12), 0.5: with_hits(18), 1.0: with_hits(19)})
    assert choice.n == 20
    # Wilson's interval of 19 in 20, from the quadratic (p̂ - p)² = z²·p(1-p)/n.
    z2 = 1.959963984540054**2
    low, high = sorted(np.roots([1 + z2 / 20, -(2 * 0.95 + z2 / 20), 0.95**2]).real)
    assert choice.interval == pytest.approx((low, high), rel=1e-9)
    assert choice.within == (0.5, 1.0)
    assert str(choice) == (
        "α=1: 95.0 % of 20 validation samples (95 % interval 76.4 to 99.1); "
        "2 of 3 values lie within it"
    )
    tie = select_alpha({0.3: with_hits(19), 1.0: with_hits(19)})
    assert "tied with 0.3" in str(tie)


def test_a_model_of_nan_is_never_chosen():
    labels = torch.tensor([0, 0, 0, 1])
    nan = outputs_of(torch.full((4, 2), float("nan")), labels)
    hopeless = outputs_of(torch.tensor([[0.0, 1.0]] * 3 + [[1.0, 0.0]]), labels)
    poor = outputs_of(torch.tensor([[0.0, 1.0]] * 4), labels)
    assert select_alpha({0.0: poor, 0.5: nan, 1.0: nan}).alpha == 0.0
    # Right on none, like the model of NaN, but sound.
    assert select_alpha({0.0: hopeless, 1.0: nan}).alpha == 0.0
    with pytest.raises(InputError, match="NaN"):
        select_alpha({0.0: nan, 1.0: nan})
    # A row of NaN is wrong, and no more than that.
    best = outputs_of(torch.tensor([[1.0, 0.0]] * 3 + [[float("nan"), 0.0]]), labels)
    choice = select_alpha({0.0: poor, 1.0: best})
    assert (choice.alpha, choice.accuracy) == (1.0, 0.75)
    choice = select_output_alpha(nan, poor)
    assert (choice.alpha, choice.accuracy) == (0.0, 0.25)
    assert select_output_alpha(poor, nan).alpha == 1.0


def test_end_points_do_not_see_the_other_model_s_nan():
    ft, zs = pair()
    nan = torch.full_like(zs, torch.nan)
    for space in ("probability", "logit"):
        end = output_ensemble(ft, nan, 1, space=space)
        torch.testing.assert_close(end, ft.softmax(dim=1))
        torch.testing.assert_close(output_ensemble(nan, zs, 0, space=space), zs.softmax(dim=1))
        assert output_ensemble(ft, nan, 0.5, space=space).isnan().all()


def test_a_calibrated_choice_in_logit_space_matches_a_brute_force_search():
    g = torch.Generator().manual_seed(5)
    labels = torch.randint(5, (211,), generator=g)
    one_hot = torch.nn.functional.one_hot(labels, 5).float()
    ft, zs = (one_hot * s + torch.randn(211, 5, generator=g) for s in (1.5, 1.2))
    choice = select_output_alpha(
        outputs_of(ft, labels),
        outputs_of(zs, labels),
        alphas=np.linspace(0, 1, 21),
        temperature_finetuned=np.float32(0.5),
        temperature_zeroshot=np.float64(2.0),
        space="logit",
    )
    hits = []
    for i in range(21):
        z = i / 20 * ft.double().numpy() / 0.5 + (1 - i / 20) * zs.double().numpy() / 2.0
        hits.append(int((z.argmax(axis=1) == labels.numpy()).sum()))
    assert choice.alpha == pytest.approx(max(i for i in range(21) if hits[i] == max(hits)) / 20)
    assert choice.accuracy == max(hits) / 211


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.int64, torch.tensor])
def test_alpha_and_temperatures_may_be_numbers_of_numpy_and_torch(kind):
    ft, zs = pair()
    got = output_ensemble(
        ft, zs, kind(1), temperature_finetuned=kind(2), temperature_zeroshot=kind(3)
    )
    torch.testing.assert_close(got, (ft / 2).softmax(dim=1))
    for bad in ("0.5", True, np.bool_(True), None, np.zeros(2), 1j):
        with pytest.raises(InputError, match="alpha"):
            output_ensemble(ft, zs, bad)
