"""Interpolation between two state dicts."""

from __future__ import annotations

import pytest
import torch

from robustft.errors import InputError
from robustft.models import interpolate


def states():
    g = torch.Generator().manual_seed(0)
    a = {"w": torch.randn(127, 3, generator=g), "s": torch.tensor(0.3), "n": torch.tensor(4)}
    b = {"n": torch.tensor(9), "s": torch.tensor(-1.7), "w": torch.randn(127, 3, generator=g)}
    return a, b


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 0.9, 1.0, -0.5, 1.5])
def test_equals_the_formula_in_float64(alpha):
    a, b = states()
    mixed = interpolate(a, b, alpha)
    assert list(mixed) == list(a)
    for name in ("w", "s"):
        expected = (1 - alpha) * a[name].double() + alpha * b[name].double()
        torch.testing.assert_close(mixed[name].double(), expected, rtol=1e-6, atol=1e-6)
    assert mixed["n"] == (4 if alpha == 0.0 else 9)


def test_endpoints_are_exact_copies():
    a, b = states()
    b["w"][0, 0] = float("inf")
    a["w"][1, 1] = float("nan")
    for alpha, end in ((0.0, a), (1.0, b)):
        mixed = interpolate(a, b, alpha)
        for name, tensor in end.items():
            assert mixed[name].numpy().tobytes() == tensor.numpy().tobytes()
            assert mixed[name].data_ptr() != tensor.data_ptr()


def test_equal_tensors_stay_as_they_are():
    a, _ = states()
    mixed = interpolate(a, {k: v.clone() for k, v in a.items()}, 0.3)
    assert all(torch.equal(mixed[k], a[k]) for k in a)


def test_16_bit_weights_are_rounded_once():
    g = torch.Generator().manual_seed(1)
    a = {"w": torch.randn(1001, generator=g).bfloat16()}
    b = {"w": torch.randn(1001, generator=g).bfloat16()}
    mixed = interpolate(a, b, 0.37)["w"]
    exact = 0.63 * a["w"].double() + 0.37 * b["w"].double()
    assert mixed.dtype == torch.bfloat16
    assert ((mixed.double() - exact).abs() <= exact.abs() * 2.0**-8).float().mean() > 0.999


def test_mismatches_are_named():
    a, b = states()
    with pytest.raises(InputError, match="state_b: does not match state_a: w is missing"):
        interpolate(a, {k: v for k, v in b.items() if k != "w"}, 0.5)
    with pytest.raises(InputError, match="extra is not expected"):
        interpolate(a, {**b, "extra": torch.zeros(1)}, 0.5)
    with pytest.raises(InputError, match=r"w has shape \[2\], expected \[127, 3\]"):
        interpolate(a, {**b, "w": torch.zeros(2)}, 0.0)
    with pytest.raises(InputError, match=r"'w' is torch.float64, expected torch.float32"):
        interpolate(a, {**b, "w": b["w"].double()}, 0.5)
    with pytest.raises(InputError, match="alpha: got nan"):
        interpolate(a, b, float("nan"))
