from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from robustft.backends.reference import vrf as reference
from robustft.errors import InputError, InputTypeError
from robustft.ops import vrf_mix

EPS = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}  # half an ulp, or more
SIZES = [(1, 1), (1, 127), (7, 2), (7, 129), (127, 507), (129, 16), (507, 31), (33, 1025)]


def logits(
    rows: int, classes: int, dtype: torch.dtype = torch.float32, scale: float = 8.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of both models, and distances."""
    z, y = scale * torch.randn(2, rows, classes)
    return z.to(dtype), y.to(dtype), 2 * torch.rand(rows)


def definition(z: Tensor, y: Tensor, d: Tensor, a: float, b: float, tz=1.0, ty=1.0, log=False):
    """The formula, from exponentials and sums alone."""
    omega = 1 / (1 + ((d - a) / b).exp())

    def p(x: Tensor) -> Tensor:
        e = (x - x.max(1, keepdim=True).values).exp()
        return e / e.sum(1, keepdim=True)

    mix = omega[:, None] * p(z / tz) + (1 - omega[:, None]) * p(y / ty)
    return mix.log() if log else mix


def gradients(function: Callable[..., Tensor], inputs: tuple, grad: Tensor, *args, **kwargs):
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves, *args, **kwargs)
    out.backward(grad.to(out.dtype))
    return out.detach(), *(x.grad for x in leaves)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("dtype", EPS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_matches_float64(
    cpu_backend: str,
    as_accurate: Callable[..., None],
    size: tuple[int, int],
    dtype: torch.dtype,
    log: bool,
) -> None:
    inputs, grad = logits(*size, dtype), torch.randn(size).to(dtype)
    numbers = (1.5, 0.6, 0.7, 1.9, log)
    truth = gradients(definition, tuple(x.double() for x in inputs), grad, *numbers)
    plain = gradients(definition, tuple(x.float() for x in inputs), grad, *numbers)
    result = gradients(
        vrf_mix,
        inputs,
        grad,
        1.5,
        0.6,
        temperature_finetuned=0.7,
        temperature_zeroshot=1.9,
        log=log,
        backend=cpu_backend,
    )
    assert [x.dtype for x in result] == [dtype] * 3 + [torch.float32]
    for mine, torchs, true, eps in zip(
        result, plain, truth, [EPS[dtype]] * 3 + [2e-6], strict=True
    ):
        # The absolute part: with one class every gradient is 0 and only rounding is left.
        as_accurate(mine, torchs.to(mine.dtype), true, eps, floor=1e-6)


def test_small_probabilities_keep_their_digits(native: str) -> None:
    """Relative error of each probability, not of the largest; and of log P far below underflow."""
    z, y, d = logits(67, 129, scale=10)
    truth = definition(z.double(), y.double(), d.double(), 1.5, 0.6)
    mixed = vrf_mix(z, y, d, 1.5, 0.6, backend=native)
    assert ((mixed.double() - truth) / truth).abs().max() < 1e-5
    z, y, d = logits(67, 129, scale=300)
    truth = reference.vrf_mix(z.double(), y.double(), d.double(), 1.5, 0.6, log=True)
    log_mixed = vrf_mix(z, y, d, 1.5, 0.6, log=True, backend=native)
    assert truth.min() < -500
    assert ((log_mixed.double() - truth) / truth.abs().clamp(min=1)).abs().max() < 1e-6


def test_every_exponential_is_within_two_ulp(native: str) -> None:
    """Two classes at ω = 1: P = e/(1 + e) shows the kernel's exponential over its whole range."""
    x = -torch.linspace(0, 86, 20001)
    z = torch.stack([torch.zeros_like(x), x], 1)
    p = vrf_mix(z, z, torch.full_like(x, -1e4), 0.0, 1.0, backend=native)[:, 1].double()
    truth = torch.sigmoid(x.double())
    assert ((p - truth) / truth).abs().max() < 4 * 2**-24 + 2 * 2**-24


# --- identities ---


def test_rows_sum_to_one(cpu_backend: str) -> None:
    z, y, d = logits(129, 507)
    for log in (False, True):
        p = vrf_mix(z, y, d, 1.5, 0.6, log=log, backend=cpu_backend)
        total = (p.exp() if log else p).sum(1)
        assert torch.allclose(total, torch.ones(129), atol=2e-6)


def test_weight_is_half_at_a_and_falls_with_distance(cpu_backend: str) -> None:
    d = torch.linspace(0, 3, 61)
    z = torch.tensor([[200.0, 0.0]]).expand(61, 2)  # the fine-tuned model says 0, the other 1:
    y = z.flip(1)  # P of class 0 is ω
    omega = vrf_mix(z, y, d, 1.5, 0.6, backend=cpu_backend)[:, 0]
    assert omega[30].item() == pytest.approx(0.5, abs=1e-6)
    assert (omega.diff() < 0).all()
    expected = [1 / (1 + math.exp((x - 1.5) / 0.6)) for x in d.tolist()]
    assert omega.tolist() == pytest.approx(expected, rel=1e-5)


def test_a_wide_transition_is_the_plain_mean(cpu_backend: str) -> None:
    z, y, d = logits(31, 17)
    mixed = vrf_mix(z, y, d, 1.5, 1e12, backend=cpu_backend)
    assert torch.allclose(mixed, (z.softmax(1) + y.softmax(1)) / 2, atol=1e-6)


def test_extreme_weights_are_the_single_models(cpu_backend: str) -> None:
    z, y, _ = logits(31, 17)
    for d, model in ((-math.inf, z), (-1e5, z), (1e5, y), (math.inf, y)):
        distance = torch.full((31,), d)
        p = vrf_mix(z, y, distance, 1.5, 0.6, backend=cpu_backend)
        assert torch.allclose(p, model.softmax(1), rtol=1e-5, atol=1e-7)
        q = vrf_mix(z, y, distance, 1.5, 0.6, log=True, backend=cpu_backend)
        # the other model may still own a class that this one excludes; here none is that rare
        assert torch.allclose(q, model.log_softmax(1), rtol=1e-5, atol=1e-5)


def test_equal_models_are_the_model(cpu_backend: str) -> None:
    z, _, d = logits(31, 17)
    assert torch.allclose(vrf_mix(z, z, d, 1.0, 0.1, backend=cpu_backend), z.softmax(1), atol=1e-6)


def test_a_shift_of_a_row_changes_nothing(cpu_backend: str) -> None:
    z, y, d = (x.round() for x in logits(31, 17))
    a = vrf_mix(z, y, d, 1.5, 0.6, backend=cpu_backend)
    b = vrf_mix(z + 1000, y - 1000, d, 1.5, 0.6, backend=cpu_backend)
    assert torch.allclose(a, b, atol=1e-6)


# --- masked classes, NaN and Inf ---


@pytest.mark.parametrize("log", [False, True])
def test_masked_classes(cpu_backend: str, log: bool) -> None:
    z, y, d = logits(9, 37)
    z[:, [3, 36]] = -math.inf
    y[:, [3, 17]] = -math.inf
    grad = torch.randn(9, 37)
    result = gradients(vrf_mix, (z, y, d), grad, 1.5, 0.6, log=log, backend=cpu_backend)
    keep = [k for k in range(37) if k != 3]
    assert (result[0][:, 3] == (-math.inf if log else 0)).all()
    inputs = (z[:, keep].double(), y[:, keep].double(), d.double())
    truth = gradients(definition, inputs, grad[:, keep], 1.5, 0.6, 1.0, 1.0, log)
    for mine, true in zip(result[:3], truth[:3], strict=True):
        assert torch.allclose(mine[:, keep].double(), true, atol=1e-5)
    assert torch.allclose(result[3].double(), truth[3], atol=1e-5)
    assert not result[1][:, [3, 36]].any()
    assert not result[2][:, [3, 17]].any()


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("column", [0, 36])
def test_nan_and_inf_spoil_their_row_alone(cpu_backend: str, log: bool, column: int) -> None:
    for dtype in EPS:
        clean = logits(6, 37, dtype)
        z, y, d = (x.clone() for x in clean)
        z[0, column] = math.nan
        y[1, column] = math.nan
        z[2, column] = math.inf
        z[3] = -math.inf
        d[4] = math.nan
        y[0, 1] = -math.inf  # a mask elsewhere in the row does not hide the NaN
        p = vrf_mix(z, y, d, 1.5, 0.6, log=log, backend=cpu_backend)
        assert p[:5].isnan().all()
        expected = vrf_mix(*clean, 1.5, 0.6, log=log, backend=cpu_backend)
        assert torch.equal(p[5], expected[5])


# --- layouts, dtypes, threads ---


@pytest.mark.parametrize("log", [False, True])
def test_any_strides(cpu_backend: str, log: bool) -> None:
    views = (
        torch.randn(66, 90)[::2, 5:42],
        torch.randn(37, 33).t(),
        torch.rand(66)[::2],
    )
    for grad in (torch.ones(()).expand(33, 37), torch.randn(37, 33).t(), torch.randn(33, 37)):
        a = gradients(vrf_mix, views, grad, 0.4, 0.2, log=log, backend=cpu_backend)
        dense = tuple(x.contiguous() for x in views)
        b = gradients(vrf_mix, dense, grad.contiguous(), 0.4, 0.2, log=log, backend=cpu_backend)
        for x, y in zip(a, b, strict=True):
            assert torch.allclose(x, y, rtol=1e-5, atol=1e-7)
    expanded = torch.randn(1, 37).expand(33, 37)
    a = vrf_mix(expanded, expanded, views[2], 0.4, 0.2, log=log, backend=cpu_backend)
    dense = expanded.contiguous()
    assert torch.equal(a, vrf_mix(dense, dense, views[2], 0.4, 0.2, log=log, backend=cpu_backend))


def test_threads_change_no_bit(native: str, with_threads: Callable[[int], None]) -> None:
    inputs, grad = logits(509, 131), torch.randn(509, 131)
    for log in (False, True):
        with_threads(1)
        one = gradients(vrf_mix, inputs, grad, 1.5, 0.6, log=log, backend=native)
        for threads in (1, 2, 3, 5):
            with_threads(threads)
            more = gradients(vrf_mix, inputs, grad, 1.5, 0.6, log=log, backend=native)
            for x, y in zip(one, more, strict=True):
                assert torch.equal(x, y)


def test_the_reference_does_not_depend_on_its_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, grad = logits(37, 19), torch.randn(37, 19)
    whole = gradients(vrf_mix, inputs, grad, 1.5, 0.6, backend="reference")
    monkeypatch.setattr(reference, "_CHUNK", 19 * 5)
    parts = gradients(vrf_mix, inputs, grad, 1.5, 0.6, backend="reference")
    for x, y in zip(whole, parts, strict=True):
        assert torch.allclose(x, y, rtol=1e-6, atol=1e-8)


def test_dtypes(cpu_backend: str) -> None:
    z, y, d = logits(9, 33)
    mixed = vrf_mix(z.bfloat16(), y, d.half(), 1.5, 0.6, backend=cpu_backend)
    assert mixed.dtype == torch.float32
    same = vrf_mix(z.bfloat16().float(), y, d.half().float(), 1.5, 0.6, backend=cpu_backend)
    assert torch.equal(mixed, same)
    double = vrf_mix(z.double(), y.double(), d.double(), 1.5, 0.6)
    assert double.dtype == torch.float64
    truth = definition(z.double(), y.double(), d.double(), 1.5, 0.6)
    assert torch.allclose(double, truth, rtol=1e-13)


def test_autocast_changes_nothing(cpu_backend: str) -> None:
    inputs, grad = logits(33, 65), torch.randn(33, 65)
    outside = gradients(vrf_mix, inputs, grad, 1.5, 0.6, backend=cpu_backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = gradients(vrf_mix, inputs, grad, 1.5, 0.6, backend=cpu_backend)
    for x, y in zip(outside, inside, strict=True):
        assert torch.equal(x, y)


# --- registration ---


@pytest.mark.parametrize("log", [False, True])
def test_gradcheck_of_the_reference(log: bool) -> None:
    z, y, d = (x.double().requires_grad_() for x in logits(4, 5, scale=1.0))

    def mix(z: Tensor, y: Tensor, d: Tensor) -> Tensor:
        return vrf_mix(z, y, d, 0.9, 0.4, temperature_finetuned=0.7, log=log, backend="reference")

    assert torch.autograd.gradcheck(mix, (z, y, d))
    assert torch.allclose(
        mix(z, y, d), reference.vrf_mix(z, y, d, 0.9, 0.4, 0.7, 1.0, log), rtol=1e-14
    )


def test_opcheck(cpu_backend: str) -> None:
    z, y, d = logits(6, 17)
    y, grad = torch.randn(17, 6).t(), torch.randn(17, 6).t()
    ops, rest = torch.ops.robustft, (1.5, 0.6, 0.7, 1.9, True, cpu_backend)
    torch.library.opcheck(ops.vrf_forward.default, (z, y, d, *rest))
    torch.library.opcheck(ops.vrf_backward.default, (z, y, d, grad, *rest))


@pytest.mark.parametrize(
    "compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)
def test_compiles_in_one_graph(cpu_backend: str, compiler: str) -> None:
    def mix(z: Tensor, y: Tensor, d: Tensor) -> Tensor:
        return vrf_mix(2 * z, y, d.square(), 1.5, 0.6, log=True, backend=cpu_backend) * 3

    inputs, grad = logits(19, 33), torch.randn(19, 33)
    eager = gradients(mix, inputs, grad)
    compiled = gradients(torch.compile(mix, fullgraph=True, backend=compiler), inputs, grad)
    for x, y in zip(eager, compiled, strict=True):
        assert torch.allclose(x, y, rtol=1e-5, atol=1e-6)


# --- out= ---


@pytest.mark.parametrize("log", [False, True])
def test_the_result_goes_where_it_is_told(cpu_backend: str, log: bool) -> None:
    z, y, d = logits(37, 131)
    options = {"log": log, "backend": cpu_backend}
    expected = vrf_mix(z, y, d, 1.5, 0.6, **options)
    wide = torch.zeros(37, 200)
    for out in (torch.zeros(37, 131), wide[:, 7:138], torch.zeros(131, 37).T):
        assert vrf_mix(z, y, d, 1.5, 0.6, out=out, **options) is out
        assert torch.equal(out, expected)
    assert wide[:, :7].eq(0).all()
    assert wide[:, 138:].eq(0).all()
    for place, other in (({"out": z}, (z, y)), ({"out": y}, (z, y))):
        z2, y2 = (x.clone() for x in other)
        out = z2 if place["out"] is z else y2
        vrf_mix(z2, y2, d, 1.5, 0.6, out=out, **options)
        assert torch.equal(out, expected)


def test_the_result_goes_where_it_is_told_in_a_graph(cpu_backend: str) -> None:
    z, y, d = logits(19, 33)

    def mix(z: Tensor, y: Tensor, d: Tensor, out: Tensor) -> Tensor:
        return vrf_mix(2 * z, y, d, 1.5, 0.6, out=out, backend=cpu_backend) + 1

    out = torch.zeros(19, 33)
    got = torch.compile(mix, fullgraph=True, backend="aot_eager")(z, y, d, out)
    expected = vrf_mix(2 * z, y, d, 1.5, 0.6, backend=cpu_backend)
    assert torch.equal(out, expected)
    assert torch.equal(got, expected + 1)
    rest = (out, 1.5, 0.6, 0.7, 1.9, True, cpu_backend)
    torch.library.opcheck(torch.ops.robustft.vrf_forward_into.default, (z, y, d, *rest))


def test_where_a_result_cannot_go_is_named() -> None:
    z, y, d = logits(3, 4)
    both = torch.zeros(7, 4)
    for out, message in (
        (1.0, "out: got float"),
        (torch.zeros(3, 5), r"out: got torch.float32 of shape \(3, 5\)"),
        (torch.zeros(3, 4).half(), "out: got torch.float16"),
        (both[1:4], "out: got memory that an input shares"),
        (torch.zeros(3, 4, requires_grad=True), "out: got a tensor where gradients are asked for"),
    ):
        with pytest.raises(InputError, match=message):
            vrf_mix(both[:3], y, d, 1.0, 0.5, out=out)
    with torch.no_grad():
        vrf_mix(z.requires_grad_(), y, d, 1.0, 0.5, out=torch.zeros(3, 4))
    with pytest.raises(InputError, match="gradients are asked for"):
        vrf_mix(z, y, d, 1.0, 0.5, out=torch.zeros(3, 4))
    into = torch.ops.robustft.vrf_forward_into
    with pytest.raises(InputError, match=r"out: got strides \(1, 3\)"):
        into(z, y, d, torch.zeros(4, 3).T, 1.0, 0.5, 1.0, 1.0, False, "cpu")


# --- bad input ---


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits_finetuned": 1.0}, InputTypeError, "logits_finetuned: got float"),
        ({"logits_finetuned": torch.ones(4)}, InputError, r"logits_finetuned: .* \[Q, K\]"),
        ({"logits_finetuned": torch.ones(3, 0)}, InputError, "logits_finetuned: got an empty"),
        ({"logits_zeroshot": torch.ones(3, 5)}, InputError, r"logits_zeroshot: got shape \(3, 5\)"),
        ({"logits_zeroshot": torch.ones(3, 4).int()}, InputTypeError, "logits_zeroshot: got dtype"),
        ({"distance": torch.ones(4)}, InputError, r"distance: got shape \(4,\), expected \[3\]"),
        ({"distance": torch.ones(3, 1)}, InputError, r"distance: got shape \(3, 1\)"),
        ({"distance": torch.ones(3, device="meta")}, InputError, "distance: got device meta"),
        ({"a": math.inf}, InputError, "a: got inf, expected a finite number"),
        ({"a": torch.tensor([1.0])}, InputTypeError, "a: got Tensor, expected a number"),
        ({"b": 0.0}, InputError, "b: got 0.0, expected a number above 0"),
        ({"b": math.nan}, InputError, "b: got nan"),
        ({"temperature_finetuned": -1}, InputError, "temperature_finetuned: got -1"),
        ({"temperature_zeroshot": 0}, InputError, "temperature_zeroshot: got 0"),
        ({"temperature_zeroshot": "1"}, InputTypeError, "temperature_zeroshot: got str"),
        ({"backend": "gpu"}, InputError, "backend: got 'gpu'"),
        ({"backend": "cuda"}, InputError, "backend 'cuda' cannot run vrf"),
    ],
)
def test_bad_input_is_named(change: dict, error: type, message: str) -> None:
    arguments = {
        "logits_finetuned": torch.ones(3, 4),
        "logits_zeroshot": torch.ones(3, 4),
        "distance": torch.ones(3),
        "a": 1.0,
        "b": 0.5,
    }
    with pytest.raises(error, match=message):
        vrf_mix(**(arguments | change))
