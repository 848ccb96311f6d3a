"""Numbers may be Python's or NumPy's, with or without an array around them; nothing else may."""

import fractions

import numpy as np
import pytest
import torch

from robustft.errors import InputError, InputTypeError
from robustft.losses import CLIPLoss, DiVELoss, MPMNCELoss
from robustft.ops import dive_loss, knn, kth_distance, mpm_nce, vrf_mix


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X, Y, D = normal(7, 5), normal(7, 5, seed=1), normal(7, seed=2).abs()
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, -1])


def mpm(name, value):
    return mpm_nce(X, Y, LABELS, LABELS, **{name: value})


# What takes a number, and one that float16 holds too.
REAL = {
    "margin": lambda v: mpm("margin", v),
    "label_smoothing": lambda v: mpm("label_smoothing", v),
    "logit_scale": lambda v: mpm("logit_scale", v),
    "momentum": lambda v: dive_loss(X, Y, Y, X, X[0], momentum=v)[0],
    "a": lambda v: vrf_mix(X, Y, D, v, 1.0),
    "b": lambda v: vrf_mix(X, Y, D, 0.25, v),
    "temperature_finetuned": lambda v: vrf_mix(X, Y, D, 1.0, 1.0, temperature_finetuned=v),
    "temperature_zeroshot": lambda v: vrf_mix(X, Y, D, 1.0, 1.0, temperature_zeroshot=v),
    "margin of the loss": lambda v: MPMNCELoss(v)(X, Y, 10.0),
    "label_smoothing of the loss": lambda v: MPMNCELoss(label_smoothing=v)(X, Y, 10.0),
    "momentum of the loss": lambda v: DiVELoss(5, v)(X, Y, Y, X)[0],
}
WHOLE = {
    "k": lambda v: kth_distance(X, Y, v),
    "k of knn": lambda v: knn(X, Y, v)[1],
    "ignore_index": lambda v: mpm("ignore_index", v),
    "keep_logits": lambda v: mpm("keep_logits", v),
    "dim": lambda v: DiVELoss(v + 3).mean,
    "ignore_index of the loss": lambda v: MPMNCELoss(ignore_index=v)(X, Y, 10.0, LABELS, LABELS),
    "keep_logits of the loss": lambda v: CLIPLoss(keep_logits=v)(X, Y, 10.0),
}


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize(
    "kind", [np.float16, np.float32, np.float64, np.array, torch.tensor, fractions.Fraction]
)
def test_a_real_number_of_any_kind_is_a_number(name, kind):
    assert torch.equal(REAL[name](kind(0.25)), REAL[name](0.25))


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.array, torch.tensor])
def test_a_whole_number_of_any_kind_is_a_number(name, kind):
    assert torch.equal(WHOLE[name](kind(2)), WHOLE[name](2))


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("value", [2.0, np.float64(2), np.bool_(True), True, "2", None, [2]])
def test_what_is_not_whole_is_refused(name, value):
    if name == "dim":
        value = np.array([2.5])
    with pytest.raises(InputTypeError, match=f"{name.split()[0]}: got .*, expected an int"):
        WHOLE[name](value)


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("value", [True, np.bool_(False), 1j, "0.25", [0.25], np.array([0.25])])
def test_what_is_no_number_is_refused(name, value):
    with pytest.raises(InputTypeError, match=f"{name.split()[0]}: got .*, expected a number"):
        REAL[name](value)


@pytest.mark.parametrize("name", ["margin", "momentum", "a", "temperature_zeroshot"])
def test_a_tensor_that_wants_a_gradient_is_refused_where_it_gets_none(name):
    with pytest.raises(InputTypeError, match=f"{name}: got a tensor that requires grad"):
        REAL[name](torch.tensor(0.25, requires_grad=True))


@pytest.mark.parametrize("name", ["ignore_index", "keep_logits"])
def test_integers_beyond_64_bits_are_refused(name):
    with pytest.raises(InputError, match=f"{name}: got {2**63}, expected an integer of 64 bits"):
        WHOLE[name](2**63)


def test_numbers_are_traced_in_one_graph():
    def step(x, y, number, whole):
        loss = mpm_nce(x, y, margin=number, logit_scale=whole, ignore_index=whole)
        avl, _, _ = dive_loss(x, y, y, x, x[0], momentum=number)
        mixed = vrf_mix(x, y, x[:, 0], number, whole)
        return loss, avl, mixed, kth_distance(x, y, whole)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for number, whole in ((0.25, 2), (1, 3)):
        for got, want in zip(compiled(X, Y, number, whole), step(X, Y, number, whole), strict=True):
            assert torch.equal(got, want)
