"""mpm_nce's C++ kernel against float64, on every instruction set that runs here."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from robustft.backends.reference import mpm_nce as reference
from robustft.errors import InputError
from robustft.ops import mpm_nce

pytestmark = pytest.mark.usefixtures("native")

# Tiles are 4 × 8, 6 × 16, 12 × 32 or 32 × 32; blocks in the cache hold 1 MB of panels.
SIZES = [
    (1, 1, 1), (2, 3, 5), (12, 32, 16), (13, 33, 31), (127, 129, 7), (31, 507, 33), (507, 31, 65),
    (97, 211, 513), (130, 390, 1101),
]  # fmt: skip
OPTIONS = [
    {},
    {"margin": 0.05, "label_smoothing": 0.02},
    {"margin": -0.1, "label_smoothing": 0.3, "symmetric": False},
    {"label_smoothing": 1.0},
]
DTYPES = {torch.float32: 3e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}


def unit(rows: int, dim: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return F.normalize(torch.randn(rows, dim)).to(dtype)


def classes(rows: int, count: int = 6) -> Tensor:
    labels = torch.randint(count, (rows,))
    labels[torch.rand(rows) < 0.1] = -100
    labels[0] = 0  # at least one positive pair
    return labels


def run(
    function: Callable[..., Tensor], x: Tensor, y: Tensor, *labels: Tensor, scale: float, **options
) -> list[Tensor]:
    """Loss and gradients to x, y and the scale."""
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    s = torch.tensor(scale, dtype=torch.promote_types(x.dtype, torch.float32), requires_grad=True)
    loss = function(x, y, *labels, logit_scale=s, **options)
    return [loss.detach(), *torch.autograd.grad(-1.7 * loss, (x, y, s))]


def check(x: Tensor, y: Tensor, *labels: Tensor, scale: float = 100.0, **options) -> list[Tensor]:
    """The kernel is as far from float64 as the float32 definition, or nearly."""
    tolerance = DTYPES[x.dtype]
    truth = run(reference.mpm_nce, x.double(), y.double(), *labels, scale=scale, **options)
    plain = run(reference.mpm_nce, x.float(), y.float(), *labels, scale=scale, **options)
    mine = run(mpm_nce, x, y, *labels, scale=scale, backend="cpu", **options)
    again = run(mpm_nce, x, y, *labels, scale=scale, backend="cpu", keep_logits=0, **options)
    for kept, computed in zip(mine, again, strict=True):
        assert torch.equal(kept, computed)
    for k, (m, p, t) in enumerate(zip(mine, plain, truth, strict=True)):
        assert t.isfinite().all()
        rounding = tolerance if k in (1, 2) else DTYPES[torch.float32]
        allowed = 3 * (p - t).norm() + rounding * t.norm() + 1e-8
        # float16 gradients end at 6e-8
        allowed += 6e-8 * math.sqrt(t.numel()) if m.dtype == torch.float16 else 0
        assert (m.double() - t).norm() <= allowed, (k, (m.double() - t).norm(), (p - t).norm())
    return mine


# --- truth: what the other instruction sets run too ---


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_truth_of_labels(size: tuple[int, int, int], options: dict) -> None:
    b, c, d = size
    check(unit(b, d), unit(c, d), classes(b), classes(c), **options)


@pytest.mark.parametrize("n", [1, 7, 12, 129, 507])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("symmetric", [True, False])
def test_truth_of_the_diagonal(n: int, dtype: torch.dtype, symmetric: bool) -> None:
    y = unit(n, 67, dtype)
    for noise in (0.3, 2.0):
        x = F.normalize(y.float() + noise * unit(n, 67)).to(dtype)
        check(x, y, symmetric=symmetric)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("density", [0.02, 0.9])
def test_truth_of_a_mask(dtype: torch.dtype, density: float) -> None:
    mask = density > torch.rand(83, 61).T
    mask[5], mask[:, 3], mask[7] = False, False, True
    for options in OPTIONS:
        check(unit(61, 35, dtype), unit(83, 35, dtype), mask=mask, **options)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 20.0, 170.0, 190.0, 1000.0, 1e5, -50.0, -1000.0])
def test_truth_at_any_scale(scale: float) -> None:
    a, b = classes(70), classes(45)
    for options in OPTIONS:
        check(unit(70, 19), unit(45, 19), a, b, scale=scale, **options)


def test_truth_where_the_common_shift_does_not_suit() -> None:
    """Rows far below the bound of all: the general sweep takes over."""
    common = unit(1, 23)
    away = F.normalize(-common + 0.2 * unit(53, 23))
    near = F.normalize(common + 0.2 * unit(53, 23))
    check(away, near)  # every cosine about −1
    check(torch.cat([near, away]), torch.cat([near, near]))
    lengths = torch.logspace(-3, 3, 53)[:, None]
    check(lengths * near, near, scale=1.0)
    check(lengths * near, away, classes(53), classes(53), scale=20.0, label_smoothing=0.1)
    check(1e12 * near, 1e-12 * away)
    check(1e-12 * near, 1e-14 * away, scale=1e26)
    eye = torch.eye(53)
    check(eye, eye)
    check(eye, eye.roll(1, 0))
    check(eye, eye.roll(1, 0), scale=1000.0)


def test_truth_of_one_class_and_of_extreme_labels() -> None:
    x, y = unit(67, 9), unit(45, 9)
    check(x, y, torch.zeros(67).long(), torch.zeros(45).long(), margin=0.1, label_smoothing=0.1)
    extreme = torch.tensor([-(2**63), 2**63 - 1, -1, -2, 0])
    check(x, y, extreme[torch.arange(67) % 5], extreme[torch.arange(45) % 5])
    check(x, y, extreme[torch.arange(67) % 5], extreme[torch.arange(45) % 5], ignore_index=-1)


@pytest.mark.parametrize("n", [2, 13, 67, 129, 300])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_truth_without_the_own_pair(n: int, dtype: torch.dtype) -> None:
    labels, x, y = classes(n), unit(n, 35, dtype), unit(n, 35, dtype)
    labels[1] = 0
    mask = torch.rand(n, n) < 0.2
    mask[1, 0] = True
    for options in OPTIONS:
        check(x, y, labels, labels, scale=20.0, exclude_self=True, **options)
        check(x, y, scale=20.0, mask=mask, exclude_self=True, **options)
        check(x, -x, labels, labels, scale=200.0, exclude_self=True, **options)
        check(x, x, labels, labels.roll(1), scale=50.0, exclude_self=True, **options)


def test_truth_of_a_class_head() -> None:
    labels = torch.randint(211, (97,))
    check(unit(97, 33), unit(211, 33), labels, torch.arange(211), symmetric=False, scale=30.0)


def test_truth_in_several_blocks_of_rows() -> None:
    # ∂Z takes 16 MB at a time: 1,344 rows of 3,000, or 384 as three parts.
    check(unit(3000, 5), unit(3000, 5), scale=10.0)


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_truth_of_what_is_not_finite(bad: float, side: int) -> None:
    for dtype in DTYPES:
        features = [unit(37, 33, dtype), unit(37, 33, dtype)]
        features[side][36, 32] = bad
        for part in run(mpm_nce, *features, scale=100.0, backend="cpu"):
            assert part.isnan().all()


@pytest.mark.parametrize("noise", [3.0, 6.0, 12.0])
@pytest.mark.parametrize("size", [(64, 512), (131, 77), (512, 512)], ids=str)
def test_truth_of_bfloat16_is_nearer_than_torchs_own(size: tuple[int, int], noise: float) -> None:
    """∂Z is rounded to bfloat16 before it is multiplied. torch does that too, and rounds Z."""

    def plain(x: Tensor, y: Tensor, logit_scale: Tensor) -> Tensor:
        logits = (logit_scale * (x @ y.T)).float()
        targets = torch.arange(len(x))
        return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2

    n, d = size
    y = unit(n, d)
    x = F.normalize(y + noise * unit(n, d)).bfloat16()
    y = y.bfloat16()
    truth = run(reference.mpm_nce, x.double(), y.double(), scale=100.0)
    torchs = run(plain, x, y, scale=100.0)
    ours = run(mpm_nce, x, y, scale=100.0, backend="cpu")
    for k, (mine, other, t) in enumerate(zip(ours, torchs, truth, strict=True)):
        assert (mine.double() - t).norm() <= 0.5 * (other.double() - t).norm(), k
    # Two roundings to 8 bits, that of ∂Z and the last one: 2^-9 each at most.
    for mine, t in zip(ours[1:3], truth[1:3], strict=True):
        assert (mine.double() - t).norm() <= 2**-8 * t.norm()


@pytest.mark.slow
def test_every_instruction_set() -> None:
    from robustft import _native

    for isa in _native.isas():
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-k", "truth", __file__],
            env=os.environ | {"ROBUSTFT_CPU_ISA": isa, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{isa}: {done.stdout[-3000:]}"


# --- bits ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [(7, 5, 3), (507, 129, 65), (1200, 1100, 20)], ids=str)
def test_threads_change_no_bit(
    with_threads: Callable[[int], None], size: tuple[int, int, int], dtype: torch.dtype
) -> None:
    b, c, d = size
    x, y, a, t = unit(b, d, dtype), unit(c, d, dtype), classes(b), classes(c)
    results = []
    for threads in (1, 2, 3, 5):
        with_threads(threads)
        for keep in (0, 1 << 30):
            options = {"margin": 0.1, "label_smoothing": 0.1, "keep_logits": keep}
            results.append(run(mpm_nce, x, y, a, t, scale=100.0, backend="cpu", **options))
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_strides(dtype: torch.dtype) -> None:
    def random(*shape: int) -> Tensor:
        return torch.randn(*shape).to(dtype)

    views = [
        random(67, 161)[:, 3:36],
        random(33, 67).t(),
        random(1, 33).expand(67, 33),
        random(134, 33)[::2],
        random(67, 66)[:, ::2],
    ]
    labels, mask = classes(134), torch.rand(67, 134) < 0.1
    for x in views:
        for y in views:
            a = run(mpm_nce, x, y, labels[::2], labels[67:], scale=1.0, backend="cpu")
            x1, y1 = x.contiguous(), y.contiguous()
            b = run(mpm_nce, x1, y1, labels[::2].clone(), labels[67:], scale=1.0, backend="cpu")
            assert all(map(torch.equal, a, b))
    x, y = views[:2]
    a = run(mpm_nce, x, y, mask=mask[:, ::2], scale=1.0, backend="cpu")
    b = run(mpm_nce, x, y, mask=mask[:, ::2].clone(), scale=1.0, backend="cpu")
    assert all(map(torch.equal, a, b))


def test_a_graph_can_be_walked_twice() -> None:
    x, y = unit(67, 33).requires_grad_(), unit(67, 33).requires_grad_()
    for keep in (0, 1 << 30):
        loss = mpm_nce(x, y, keep_logits=keep, backend="cpu")
        first = torch.autograd.grad(loss, (x, y), retain_graph=True)
        second = torch.autograd.grad(loss, (x, y))
        assert all(map(torch.equal, first, second))


def test_only_the_gradients_asked_for() -> None:
    x, y, s = unit(67, 33), unit(67, 33), torch.tensor(100.0)
    for keep in (0, 1 << 30):
        everything = run(mpm_nce, x, y, scale=100.0, keep_logits=keep, backend="cpu")
        inputs = [x, y, s]
        for k in range(3):
            leaves = [t.clone().requires_grad_(i == k) for i, t in enumerate(inputs)]
            loss = mpm_nce(*leaves[:2], logit_scale=leaves[2], keep_logits=keep, backend="cpu")
            (grad,) = torch.autograd.grad(-1.7 * loss, leaves[k])
            assert torch.equal(grad, everything[1 + k])


def test_products_are_kept_only_within_the_budget() -> None:
    x = unit(96, 8).requires_grad_()  # 96: whole tiles
    for keep, kept in ((0, 0), (4 * 96 * 96 - 1, 0), (4 * 96 * 96, 96 * 96)):
        loss = mpm_nce(x, x.detach(), keep_logits=keep, backend="cpu")
        assert loss.grad_fn.saved_tensors[-1].numel() == kept


def test_callers_on_several_threads_agree() -> None:
    x, y = unit(507, 67), unit(507, 67)
    expected = run(mpm_nce, x, y, scale=100.0, backend="cpu")

    def call(_: int) -> bool:
        torch.set_num_threads(3)
        return all(map(torch.equal, run(mpm_nce, x, y, scale=100.0, backend="cpu"), expected))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(call, range(32)))


@pytest.mark.parametrize("step", [1 << 32, 1 << 33, -(1 << 40), (1 << 32) - 1])
def test_labels_are_compared_by_all_their_bits(step: int) -> None:
    x, y = unit(40, 8), unit(40, 8)
    small = torch.randint(0, 12, (40,))
    for rows, columns in ((small, small.flip(0)), (small, torch.arange(40))):
        results = [
            run(mpm_nce, x, y, a, b, scale=20.0, backend="cpu")
            for a, b in ((rows, columns), (rows * step, columns * step))
        ]
        assert all(map(torch.equal, *results))


def test_the_kernel_refuses_what_it_would_misread() -> None:
    op, x, y, s = torch.ops.robustft.mpm_nce_forward, unit(5, 4), unit(5, 4), torch.tensor(1.0)
    labels, rest = torch.arange(5), (0.0, 0.0, True, False, 0, "cpu")
    for arguments, message in (
        ((x, y.half(), None, None, None), "float16"),
        ((x, y[:, :3], None, None, None), r"\(5, 3\)"),
        ((x, y[:3], None, None, None), "text: got 3 rows"),
        ((x, y, labels[:3], labels, None), r"image_labels: got torch.int64 of shape \(3,\)"),
        ((x, y, labels, labels.int(), None), "text_labels: got torch.int32"),
        ((x, y, None, None, torch.ones(4, 5) > 0), "mask: got torch.bool"),
    ):
        with pytest.raises(InputError, match=message):
            op(*arguments, -100, s, *rest)
