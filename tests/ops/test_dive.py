from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from robustft.backends.reference import dive as reference
from robustft.errors import InputError, InputTypeError
from robustft.ops import dive_loss

NARROW = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}  # half an ulp, or more
SIZES = [(1, 1), (1, 127), (7, 1), (7, 129), (127, 507), (129, 16), (507, 31), (129, 1025)]


def features(rows: int, dim: int, dtype: torch.dtype = torch.float32, moved: float = 0.1) -> list:
    """image, image_pretrained, text, text_pretrained, fine-tuned by a shared and an own shift."""
    made = []
    shift = moved * torch.randn(dim)
    for _ in range(2):
        start = torch.randn(rows, dim)
        made += [start + shift + moved * torch.randn(rows, dim), start]
    return [x.to(dtype) for x in made]


def definition(
    inputs: list[Tensor], mean: Tensor, weights: tuple[float, float], **options
) -> tuple:
    """Outputs and both gradients by autograd through plain formulas, in the dtype of the inputs."""
    f, f0, g, g0 = inputs
    f, g = f.detach().requires_grad_(), g.detach().requires_grad_()
    momentum, normalize = options.get("momentum", 0.99), options.get("normalize", True)

    def n(x: Tensor) -> Tensor:
        return x / x.norm(dim=1, keepdim=True) if normalize else x

    u, v = n(f) - n(f0), n(g) - n(g0)
    m = momentum * mean + (1 - momentum) * torch.cat([u, v]).mean(0).detach()
    avl = ((u - m) ** 2).sum(1).mean() + ((v - m) ** 2).sum(1).mean()
    pvl = ((u - v) ** 2).sum(1).mean()
    (weights[0] * avl + weights[1] * pvl).backward()
    return avl.detach(), pvl.detach(), m, f.grad, g.grad


def run(inputs: list[Tensor], mean: Tensor, weights: tuple, **options) -> tuple:
    f, f0, g, g0 = inputs
    f, g = f.detach().requires_grad_(), g.detach().requires_grad_()
    avl, pvl, m = dive_loss(f, f0, g, g0, mean, **options)
    (weights[0] * avl + weights[1] * pvl).backward()
    return avl.detach(), pvl.detach(), m, f.grad, g.grad


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_matches_float64(
    cpu_backend: str,
    as_accurate: Callable[..., None],
    size: tuple[int, int],
    dtype: torch.dtype,
    normalize: bool,
) -> None:
    inputs, mean = features(*size, dtype), 0.01 * torch.randn(size[1])
    for momentum, weights in ((0.99, (0.7, -1.3)), (0.0, (1.0, 0.0)), (0.5, (0.0, 1.0))):
        options = {"momentum": momentum, "normalize": normalize}
        truth = definition([x.double() for x in inputs], mean.double(), weights, **options)
        plain = definition([x.float() for x in inputs], mean, weights, **options)
        result = run(inputs, mean, weights, backend=cpu_backend, **options)
        assert [x.dtype for x in result] == [torch.float32] * 3 + [dtype] * 2
        # An absolute part too: one row at α = 0 has an AVL of 0, D = 1 has u = 0.
        for mine, torchs, true in zip(result[:3], plain[:3], truth[:3], strict=True):
            as_accurate(mine, torchs, true, 2e-6, floor=2e-8)
        for mine, torchs, true in zip(result[3:], plain[3:], truth[3:], strict=True):
            # D = 1: n(x) = ±1 is constant and the gradient is rounding noise about 0.
            floor = torch.finfo(dtype).tiny + 2e-7
            error = (mine.double() - true).abs().max()
            allowed = (torchs.to(dtype).double() - true).abs().max()
            assert error <= allowed + NARROW[dtype] * true.abs().max() + floor


def test_keeps_digits_of_small_moves(native: str) -> None:
    """Rows that moved by 10⁻³ of their length: a difference of unit vectors has 10⁻⁴ of error."""
    inputs, mean = features(127, 513, moved=1e-3), torch.zeros(513)
    for momentum in (0.99, 0.0):
        truth = definition([x.double() for x in inputs], mean.double(), (1, 1), momentum=momentum)
        result = run(inputs, mean, (1, 1), momentum=momentum, backend=native)
        for mine, true in zip(result, truth, strict=True):
            assert (mine.double() - true).abs().max() <= 1e-6 * true.abs().max()


def test_a_shared_shift_does_not_cancel(cpu_backend: str) -> None:
    """α = 0 and a shift far larger than what is left about it; sorted rows, to fool a sample."""
    torch.manual_seed(1)
    rows, dim = 1009, 67
    shift = 100 * torch.randn(dim)
    f0, g0 = torch.zeros(rows, dim), torch.zeros(rows, dim)
    f = shift + torch.randn(rows, dim).sort(0).values
    g = shift + torch.randn(rows, dim)
    inputs, options = [f, f0, g, g0], {"momentum": 0.0, "normalize": False}
    truth = definition([x.double() for x in inputs], torch.zeros(dim).double(), (1, 1), **options)
    avl, *_ = run(inputs, torch.zeros(dim), (1, 1), backend=cpu_backend, **options)
    assert abs(avl.item() / truth[0].item() - 1) < 1e-5


@pytest.mark.parametrize("lengths", [(1e-3, 1e3), (1e3, 1e-3), (1e18, 1e18), (1e-9, 1.0)])
def test_rows_of_any_length(native: str, lengths: tuple[float, float]) -> None:
    f, f0, g, g0 = features(33, 65, moved=1.0)
    inputs = [f * lengths[0], f0 * lengths[1], g * lengths[1], g0 * lengths[0]]
    mean = torch.zeros(65)
    truth = definition([x.double() for x in inputs], mean.double(), (1, 1))
    result = run(inputs, mean, (1, 1), backend=native)
    for mine, true in zip(result, truth, strict=True):
        assert (mine.double() - true).abs().max() <= 3e-6 * true.abs().max()


def test_rows_too_long_to_square_in_float32(native: str) -> None:
    inputs = [x * 1e25 for x in features(9, 33)]
    truth = definition([x.double() for x in inputs], torch.zeros(33).double(), (1, 1))
    result = run(inputs, torch.zeros(33), (1, 1), backend=native)
    for mine, true in zip(result[:3], truth[:3], strict=True):
        assert (mine.double() - true).abs().max() <= 3e-6 * true.abs().max()


def test_zero_rows_are_those_of_normalize(cpu_backend: str) -> None:
    inputs = features(5, 19)
    inputs[0][1] = 0
    inputs[1][2] = 0
    inputs[2][3] = 1e-14
    f, f0, g, g0 = (x.double() for x in inputs)
    f, g = f.requires_grad_(), g.requires_grad_()
    n = torch.nn.functional.normalize
    u, v = n(f) - n(f0), n(g) - n(g0)
    m = torch.cat([u, v]).mean(0).detach() * 0.01
    avl = ((u - m) ** 2).sum(1).mean() + ((v - m) ** 2).sum(1).mean()
    pvl = ((u - v) ** 2).sum(1).mean()
    (avl + 2 * pvl).backward()
    result = run(inputs, torch.zeros(19), (1, 2), backend=cpu_backend)
    for mine, true in zip(result, (avl, pvl, m, f.grad, g.grad), strict=True):
        assert torch.allclose(mine.double(), true, rtol=1e-5, atol=1e-6)


# --- identities ---


def test_no_fine_tuning_is_exactly_zero(cpu_backend: str) -> None:
    for dtype in NARROW:
        _, f0, _, g0 = features(37, 129, dtype)
        avl, pvl, m, grad_f, grad_g = run(
            [f0, f0.clone(), g0, g0.clone()], torch.zeros(129), (1, 1), backend=cpu_backend
        )
        for x in (avl, pvl, m, grad_f, grad_g):
            assert not x.any()


def test_a_common_shift_leaves_no_pair_loss_and_is_learnt_by_the_mean(cpu_backend: str) -> None:
    f0, g0 = torch.randint(-8, 9, (2, 31, 13)).float().unbind()
    c = torch.randint(-4, 5, (13,)).float() + 0.5
    mean, alpha = torch.zeros(13), 0.9
    for k in range(1, 8):
        avl, pvl, mean = dive_loss(
            f0 + c, f0, g0 + c, g0, mean, momentum=alpha, normalize=False, backend=cpu_backend
        )
        assert pvl == 0
        assert avl.item() == pytest.approx(2 * alpha ** (2 * k) * c.square().sum().item(), rel=1e-5)
        assert (mean - c).norm().item() == pytest.approx(alpha**k * c.norm().item(), rel=1e-5)


def test_opposite_shifts(cpu_backend: str) -> None:
    f0, g0 = torch.randint(-8, 9, (2, 31, 13)).float().unbind()
    c = torch.arange(13).float() - 5.5
    avl, pvl, mean = dive_loss(
        f0 + c, f0, g0 - c, g0, torch.zeros(13), normalize=False, backend=cpu_backend
    )
    square = c.square().sum().item()
    assert avl.item() == pytest.approx(2 * square, rel=1e-6)
    assert pvl.item() == pytest.approx(4 * square, rel=1e-6)
    assert mean.abs().max() < 1e-6


def test_permuting_pairs_permutes_gradients(cpu_backend: str) -> None:
    inputs, mean, order = features(61, 33), torch.randn(33), torch.randperm(61)
    a = run(inputs, mean, (1, 1), backend=cpu_backend)
    b = run([x[order] for x in inputs], mean, (1, 1), backend=cpu_backend)
    for x, y in zip(a[:3], b[:3], strict=True):
        assert torch.allclose(x, y, rtol=1e-5, atol=1e-7)
    for x, y in zip(a[3:], b[3:], strict=True):
        assert torch.allclose(x[order], y, rtol=1e-4, atol=1e-7)


# --- layouts, dtypes, threads ---


def test_any_strides(cpu_backend: str) -> None:
    wide = torch.randn(67, 4 * 40)
    views = [
        wide[:, 3:36],  # a slice
        torch.randn(33, 67).t(),  # transposed
        torch.randn(1, 33).expand(67, 33),  # expanded
        torch.randn(134, 33)[::2],  # every other row
    ]
    mean = torch.randn(66)[::2]
    a = run(views, mean, (0.3, 0.4), backend=cpu_backend)
    b = run([x.contiguous() for x in views], mean.contiguous(), (0.3, 0.4), backend=cpu_backend)
    for x, y in zip(a, b, strict=True):
        # torch's own sums take another order through a transposed matrix
        assert torch.equal(x, y) if cpu_backend == "cpu" else torch.allclose(x, y, rtol=1e-4)


@pytest.mark.parametrize("rows", [7, 507, 4099])
def test_threads_change_no_bit(native: str, with_threads: Callable[[int], None], rows: int) -> None:
    inputs, mean = features(rows, 131), torch.randn(131)
    with_threads(1)
    one = run(inputs, mean, (1, 2), backend=native)
    for threads in (1, 2, 3, 5):
        with_threads(threads)
        for x, y in zip(one, run(inputs, mean, (1, 2), backend=native), strict=True):
            assert torch.equal(x, y)


def test_mixed_dtypes_are_promoted_and_double_stays_double(cpu_backend: str) -> None:
    f, f0, g, g0 = features(9, 33)
    mixed = [f.bfloat16(), f0, g.bfloat16(), g0]
    result = run(mixed, torch.zeros(33), (1, 1), backend=cpu_backend)
    same = run([x.float() for x in mixed], torch.zeros(33), (1, 1), backend=cpu_backend)
    assert torch.equal(result[0], same[0])
    assert result[3].dtype == torch.bfloat16
    double = [x.double() for x in (f, f0, g, g0)]
    avl, pvl, mean = dive_loss(*double, torch.zeros(33, dtype=torch.float64))
    truth = definition(double, torch.zeros(33).double(), (1, 1))
    assert avl.dtype == mean.dtype == torch.float64
    assert torch.allclose(torch.stack([avl, pvl]), torch.stack(truth[:2]), rtol=1e-13)


def test_autocast_changes_nothing(cpu_backend: str) -> None:
    inputs, mean = features(33, 65, torch.bfloat16), torch.zeros(65)
    outside = run(inputs, mean, (1, 1), backend=cpu_backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = run(inputs, mean, (1, 1), backend=cpu_backend)
    for x, y in zip(outside, inside, strict=True):
        assert torch.equal(x, y)


def test_only_what_needs_a_gradient_gets_one(cpu_backend: str) -> None:
    inputs = [x.requires_grad_() for x in features(5, 7)]
    mean = torch.zeros(7, requires_grad=True)
    avl, pvl, new_mean = dive_loss(*inputs, mean, backend=cpu_backend)
    assert not new_mean.requires_grad
    pvl.backward()
    assert [x.grad is not None for x in (*inputs, mean)] == [True, False, True, False, False]
    assert avl.requires_grad


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", range(4))
@pytest.mark.parametrize("normalize", [True, False])
def test_what_is_not_finite_shows(
    cpu_backend: str, bad: float, where: int, normalize: bool
) -> None:
    for dtype in NARROW:
        inputs = features(67, 37, dtype)
        inputs[where][50, 36] = bad
        avl, pvl, mean = dive_loss(
            *inputs, torch.zeros(37), normalize=normalize, backend=cpu_backend
        )
        assert avl.isnan()
        assert not pvl.isfinite()
        assert not mean[36].isfinite()


# --- registration ---


def test_gradcheck_of_the_reference() -> None:
    f, f0, g, g0 = (x.double() for x in features(4, 5))
    f.requires_grad_()
    g.requires_grad_()
    mean = torch.randn(5).double()
    for normalize in (True, False):

        def losses(f: Tensor, g: Tensor, normalize: bool = normalize) -> tuple[Tensor, Tensor]:
            # α = 1: m does not depend on f, so that finite differences agree with a constant m.
            avl, pvl, _ = dive_loss(
                f, f0, g, g0, mean, momentum=1.0, normalize=normalize, backend="reference"
            )
            return avl, pvl

        assert torch.autograd.gradcheck(losses, (f, g))


def test_definition_and_explicit_gradients_agree() -> None:
    f, f0, g, g0 = (x.double() for x in features(11, 7))
    mean = torch.randn(7).double()
    f.requires_grad_()
    g.requires_grad_()
    avl, pvl, m = reference.dive_loss(f, f0, g, g0, mean)
    (0.3 * avl + 0.7 * pvl).backward()
    args = (torch.tensor(0.3).double(), torch.tensor(0.7).double(), True)
    grad_f, grad_g = reference.backward(f.detach(), f0, g.detach(), g0, m, *args)
    assert torch.allclose(grad_f, f.grad, rtol=1e-12)
    assert torch.allclose(grad_g, g.grad, rtol=1e-12)


def test_opcheck(cpu_backend: str) -> None:
    inputs, mean = features(6, 17), torch.zeros(17)
    inputs[2] = torch.randn(17, 6).t()  # gradients are contiguous all the same
    ops = torch.ops.robustft
    torch.library.opcheck(ops.dive_forward.default, (*inputs, mean, 0.9, True, cpu_backend))
    grads = (torch.tensor(0.5), torch.tensor(2.0))
    torch.library.opcheck(ops.dive_backward.default, (*inputs, mean, *grads, True, cpu_backend))


@pytest.mark.parametrize(
    "compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)
def test_compiles_in_one_graph(cpu_backend: str, compiler: str) -> None:
    def step(f: Tensor, f0: Tensor, g: Tensor, g0: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        avl, pvl, new_mean = dive_loss(2 * f, f0, g, g0, mean, backend=cpu_backend)
        return avl + 3 * pvl, new_mean

    compiled = torch.compile(step, fullgraph=True, backend=compiler)
    results = []
    for function in (step, compiled):
        inputs = [x.clone() for x in features_fixed()]
        inputs[0].requires_grad_()
        inputs[2].requires_grad_()
        loss, mean = function(*inputs, torch.zeros(33))
        loss.backward()
        results.append((loss.detach(), mean, inputs[0].grad, inputs[2].grad))
    for x, y in zip(*results, strict=True):
        assert torch.allclose(x, y, rtol=1e-5, atol=1e-7)


def features_fixed() -> list[Tensor]:
    torch.manual_seed(3)
    return features(19, 33)


# --- bad input ---


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"image": [[1.0]]}, InputTypeError, "image: got list"),
        ({"image": torch.ones(3)}, InputError, r"image: got shape \(3,\), expected \[B, D\]"),
        ({"image": torch.ones(0, 4)}, InputError, "image: got an empty tensor"),
        ({"image": torch.ones(3, 4).long()}, InputTypeError, "image: got dtype torch.int64"),
        ({"image_pretrained": torch.ones(3, 5)}, InputError, r"image_pretrained: got shape \(3, 5"),
        ({"text": torch.ones(4, 4)}, InputError, r"text: got shape \(4, 4\), expected \(3, 4\)"),
        ({"text_pretrained": torch.ones(3, 4, device="meta")}, InputError, "text_pretrained: got "),
        ({"mean": torch.ones(5)}, InputError, r"mean: got shape \(5,\), expected \[4\]"),
        ({"mean": 0.0}, InputTypeError, "mean: got float"),
        ({"momentum": 1.5}, InputError, "momentum: got 1.5"),
        ({"momentum": float("nan")}, InputError, "momentum: got nan"),
        ({"momentum": "a"}, InputTypeError, "momentum: got str"),
        ({"group": 1}, InputTypeError, "group: got int"),
        ({"backend": "gpu"}, InputError, "backend: got 'gpu'"),
        ({"backend": "triton"}, InputError, "backend 'triton' cannot run dive"),
    ],
)
def test_bad_input_is_named(change: dict, error: type, message: str) -> None:
    names = ("image", "image_pretrained", "text", "text_pretrained")
    arguments = dict.fromkeys(names, torch.ones(3, 4)) | {"mean": torch.zeros(4)} | change
    with pytest.raises(error, match=message):
        dive_loss(**arguments)


def test_the_kernel_refuses_what_it_would_misread(native: str) -> None:
    inputs, mean = features(3, 4), torch.zeros(4)
    forward = torch.ops.robustft.dive_forward
    with pytest.raises(InputError, match="bfloat16"):
        forward(inputs[0], inputs[1].bfloat16(), *inputs[2:], mean, 0.9, True, native)
    with pytest.raises(InputError, match=r"\(2, 4\)"):
        forward(*inputs[:3], inputs[3][:2], mean, 0.9, True, native)
    with pytest.raises(InputError, match=r"expected \[4\]"):
        forward(*inputs, torch.zeros(3), 0.9, True, native)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_works_in_a_forked_child(native: str) -> None:
    """The pool's threads do not survive a fork; the child must not wait for them.

    Where the parent works on torch's OpenMP team the first child is the first to have a pool, and
    its own child the first to inherit one.
    """
    script = """
import os, signal, torch
from robustft.ops import dive_loss
torch.manual_seed(0)
torch.set_num_threads(3)
x = [torch.randn(2053, 67) for _ in range(4)]
def loss(): return dive_loss(*x, torch.zeros(67), backend="cpu")[0].item()
first = loss()
def in_child(work):
    pid = os.fork()
    if pid == 0:
        signal.alarm(100)  # rather than to wait for ever
        os._exit(0 if work() else 1)
    return os.waitpid(pid, 0)[1] == 0
def same(): return loss() == first and loss() == first
assert in_child(lambda: same() and in_child(same) and same()) and same()
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=240)


def test_callers_on_several_threads_agree(native: str, with_threads: Callable[[int], None]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with_threads(3)
    inputs, mean = features(2053, 67), torch.zeros(67)
    expected = dive_loss(*inputs, mean, backend=native)

    def call(_: int) -> bool:
        torch.set_num_threads(3)
        result = dive_loss(*inputs, mean, backend=native)
        return all(torch.equal(x, y) for x, y in zip(result, expected, strict=True))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(call, range(64)))
