"""Every differentiable op on tensors of the card: values, registration, dtypes, bad input."""

from __future__ import annotations

import pytest
import torch

from robustft.errors import InputError
from robustft.ops import dive_loss, mpm_nce, rsa, vrf_mix

pytestmark = pytest.mark.gpu

# The interpreter truncates to bfloat16 where a card rounds: a rehearsal's is a little wider.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@pytest.mark.parametrize("size", ["odd", "even"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_equals_float64(make_case, backend, dtype, size):
    case = make_case(dtype, size)
    found, truth = case.run(backend), case.truth()
    for mine, true in zip(found, truth, strict=True):
        assert mine.device == true.device
        assert mine.isfinite().all()
        error = (mine.double() - true).abs().max()
        assert error <= TOLERANCE[mine.dtype] * true.abs().max() + 1e-6


def test_strides(make_case, backend):
    case = make_case(torch.float32)
    odd = [x.T.contiguous().T if x.ndim == 2 and x.is_floating_point() else x for x in case.inputs]
    wide = [x.repeat_interleave(2, 0)[::2] if x.ndim else x for x in case.inputs]
    # A column more: rows that start at addresses which no wide load may assume.
    shifted = [
        torch.nn.functional.pad(x, (1, 0))[:, 1:] if x.ndim == 2 and x.is_floating_point() else x
        for x in case.inputs
    ]
    plain = case.run(backend)
    for inputs in (odd, wide, shifted):
        for mine, true in zip(case.run(backend, inputs), plain, strict=True):
            # Libraries add strided matrices in another order.
            assert (mine - true).abs().max() <= 1e-5 * true.abs().max() + 1e-6


def test_autocast_changes_nothing(make_case, backend, card):
    case = make_case(torch.bfloat16)
    outside = case.run(backend)
    with torch.autocast(card, dtype=torch.bfloat16):
        inside = case.run(backend)
    for x, y in zip(outside, inside, strict=True):
        assert torch.equal(x, y)


def test_float64_runs_the_reference_and_says_so(make_case, backend):
    case = make_case(torch.float32)
    wide = [x.double() if x.is_floating_point() else x for x in case.inputs]
    with pytest.raises(InputError, match="float64"):
        case.run(backend, wide)
    for x in case.run("auto", wide):
        assert x.dtype == torch.float64


def test_a_nan_shows(make_case, backend):
    case = make_case(torch.float32)
    inputs = [x.clone() for x in case.inputs]
    inputs[0][3, 5] = torch.nan
    assert case.run(backend, inputs)[0].isnan().any()


def test_opcheck(backend, card):
    ops = torch.ops.robustft
    if backend == "cuda":
        pytest.skip("the triton backend shows the registration")
    x = [torch.randn(6, 17, device=card) for _ in range(4)]
    mean, one = torch.zeros(17, device=card), torch.ones((), device=card)
    torch.library.opcheck(ops.dive_forward.default, (*x, mean, 0.9, True, backend))
    torch.library.opcheck(ops.dive_backward.default, (*x, mean, one, one, True, backend))
    numbers = (1.5, 0.6, 0.7, 1.9, True, backend)
    distance = torch.rand(6, device=card)
    torch.library.opcheck(ops.vrf_forward.default, (x[0], x[1], distance, *numbers))
    torch.library.opcheck(ops.vrf_backward.default, (x[0], x[1], distance, x[2], *numbers))
    labels = (torch.arange(6, device=card) % 3,) * 2
    head = (x[0], x[1], labels[0], labels[1].clone(), None, -100, 10 * one)
    options = (0.1, 0.1, True)
    torch.library.opcheck(ops.mpm_nce_forward.default, (*head, *options, 0, backend))
    _, *saved = ops.mpm_nce_forward(*head, *options, 0, backend)
    backward = (*head, *saved, one, *options, True, True, backend)
    torch.library.opcheck(ops.mpm_nce_backward.default, backward)
    rows = torch.randn(9, 17, device=card)
    torch.library.opcheck(
        ops.rsa_correlation.default, (rows, 2 * rows + 1, "euclidean", "pearson", backend)
    )


def test_tensors_of_two_devices_are_named(real_card):
    x = [torch.randn(4, 5, device=real_card) for _ in range(4)]
    with pytest.raises(InputError, match="mean: got device cpu, expected cuda"):
        dive_loss(*x, torch.zeros(5))
    with pytest.raises(InputError, match="text_features: got device cpu"):
        mpm_nce(x[0], x[1].cpu())
    with pytest.raises(InputError, match="distance: got device cpu"):
        vrf_mix(x[0], x[1], torch.rand(4), 1.0, 1.0)
    with pytest.raises(InputError, match="it serves 'cpu'"):
        mpm_nce(x[0], x[1], backend="cpu")


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_a_fitted_batch_keeps_its_digits(card, scale):
    """Positives nearly certain: p − w is far below the rounding of p. And rows far apart."""
    x = torch.nn.functional.normalize(torch.randn(257, 64, device=card), dim=1)
    for y in (torch.nn.functional.normalize(x + 0.02 * torch.randn_like(x), dim=1), -x, x):
        s = torch.tensor(scale, device=card)
        case = [x.clone().requires_grad_(), y.clone().requires_grad_(), s.requires_grad_()]
        wide = [t.detach().double().requires_grad_() for t in case]
        loss = mpm_nce(case[0], case[1], logit_scale=case[2], backend="triton")
        true = mpm_nce(wide[0], wide[1], logit_scale=wide[2], backend="reference")
        assert abs(loss.item() - true.item()) <= 2e-6 * true.item() + 2e-7 * scale
        grads = torch.autograd.grad(loss, case), torch.autograd.grad(true, wide)
        for mine, exact in zip(*grads, strict=True):
            assert (mine.double() - exact).norm() <= 1e-4 * exact.norm() + 1e-7 * scale


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_rsa(card, metric):
    a = torch.randn(517, 65, device=card)
    b = a @ torch.randn(65, 33, device=card) + torch.randn(517, 33, device=card)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        low = a.to(dtype), b.to(dtype)
        found = rsa(*low, metric=metric, backend="triton")
        true = rsa(low[0].double(), low[1].double(), metric=metric, backend="reference")
        assert abs(found - true) < 1e-5


def test_tf32_only_where_torch_allows_it(real_card):
    x, y = torch.nn.functional.normalize(torch.randn(2, 512, 256, device=real_card), dim=2)
    scale = torch.tensor(100.0, device=real_card)
    true = mpm_nce(x.double(), y.double(), logit_scale=scale, backend="reference").item()
    before = torch.get_float32_matmul_precision()
    try:
        errors = {}
        for precision in ("highest", "high"):
            torch.set_float32_matmul_precision(precision)
            loss = mpm_nce(x, y, logit_scale=scale, backend="triton").item()
            errors[precision] = abs(loss / true - 1)
    finally:
        torch.set_float32_matmul_precision(before)
    assert errors["highest"] < 2e-6
    assert errors["highest"] < errors["high"] < 1e-2


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one device")
def test_another_device_than_the_current_one(make_case, backend, real_card):
    case = make_case(torch.float32)
    plain = case.run(backend)
    there = case.on("cuda:1").run(backend)
    assert torch.cuda.current_device() == 0
    for x, y in zip(plain, there, strict=True):
        assert y.device == torch.device("cuda:1")
        assert torch.equal(x, y.to(x.device))
