"""dive_loss's CUDA kernels in the emulator: what the contract tests of all backends do not ask."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from robustft.backends.cuda import dive, launcher
from robustft.backends.reference import dive as reference
from robustft.ops import dive_loss

pytestmark = pytest.mark.emulator


def inputs(rows: int, dim: int, dtype: torch.dtype = torch.float32, moved: float = 0.1) -> list:
    made = []
    shift = moved * torch.randn(dim)
    for _ in range(2):
        start = torch.randn(rows, dim)
        made += [start + shift + moved * torch.randn(rows, dim), start]
    return [x.to(dtype) for x in made]


def run(features: list[Tensor], mean: Tensor, weights: tuple[float, float], **options) -> list:
    f, f0, g, g0 = features
    f, g = f.detach().requires_grad_(), g.detach().requires_grad_()
    avl, pvl, m = dive_loss(f, f0, g, g0, mean, backend="cuda", **options)
    (weights[0] * avl + weights[1] * pvl).backward()
    return [avl.detach(), pvl.detach(), m, f.grad, g.grad]


def truth(features: list[Tensor], mean: Tensor, weights: tuple[float, float], **options) -> list:
    f, f0, g, g0 = (x.double() for x in features)
    f.requires_grad_()
    g.requires_grad_()
    avl, pvl, m = reference.dive_loss(f, f0, g, g0, mean.double(), **options)
    (weights[0] * avl + weights[1] * pvl).backward()
    return [avl.detach(), pvl.detach(), m, f.grad, g.grad]


def check(features: list[Tensor], mean: Tensor, tolerance: float, parts: int = 5, **options):
    found = run(features, mean, (0.7, -1.3), **options)
    wanted = truth(features, mean, (0.7, -1.3), **options)
    eps = {torch.float32: 0.0, torch.bfloat16: 4e-3, torch.float16: 5e-4}[features[0].dtype]
    for i, (mine, true) in enumerate(zip(found[:parts], wanted, strict=False)):
        error, largest = (mine.double() - true).abs().max(), true.abs().max()
        # float16's subnormals, of gradients
        floor = torch.finfo(mine.dtype).tiny if i > 2 else 0
        assert error <= (tolerance + (eps if i > 2 else 0)) * largest + floor, (i, error, largest)


# Widths that meet each way to hold a row: chunks a thread and warps a row, and rows that are not
# held; one number less, one more, and whole chunks.
WIDTHS = {
    torch.float32: (1, 127, 128, 129, 256, 388, 512, 513, 1020, 1024, 2047, 4096, 4097, 4100),
    torch.bfloat16: (1, 255, 256, 264, 768, 1016, 1024, 1025, 2048, 4095, 8192, 8200, 8201),
    torch.float16: (7, 512, 640, 1023, 2056, 8192, 8193),
}


@pytest.mark.parametrize(
    ("dtype", "dim"), [(t, d) for t, dims in WIDTHS.items() for d in dims], ids=str
)
def test_every_way_to_hold_a_row(dtype: torch.dtype, dim: int) -> None:
    for rows, normalize in ((1, True), (19, True), (10, False)):
        mean = 0.01 * torch.randn(dim)
        features = inputs(rows, dim, dtype)
        if dim == 1:  # n(x) = ±1: everything that is normalised is 0
            normalize = False
        check(features, mean, 3e-6, momentum=0.9, normalize=normalize)


def test_plans_cover_all_widths() -> None:
    kinds = set()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for dim in range(1, 9000):
            plan = dive._plan(dtype, dim)
            kind, team, row = plan
            chunks = int(kind[-2])
            kinds.add((chunks, team))
            if chunks:
                assert chunks * team * 512 >= dim * dtype.itemsize
                assert row >= 4 * dim
                assert row * (1 + plan.teams) <= 64 << 10
            else:
                assert dim * dtype.itemsize > 4 * 8 * 512
    assert kinds == {(c, t) for t in (1, 2, 4, 8) for c in (3, 4)} | {(1, 1), (2, 1), (0, 8)}


def test_keeps_digits_of_small_moves() -> None:
    """Rows that moved by 10⁻³ of their length: a difference of unit vectors has 10⁻⁴ of error."""
    for momentum in (0.99, 0.0):
        check(inputs(127, 513, moved=1e-3), torch.zeros(513), 1e-6, momentum=momentum)


# What float64 makes of rows that nearly cancel, over what is left: of float32 rows whose length
# changes by 40 % and their direction by 1 %, digits are lost with the length's part.
NEAR = {
    "own and shared shift": ({"moved": 1e-4}, 3e-7),
    "shared shift": ({"moved": 1e-4, "own": 1e-6}, 6e-6),
    "longer": ({"moved": 1e-6, "longer": 1e-4}, 5e-5),
    "shorter": ({"moved": 1e-2, "longer": -0.4}, 2e-5),
}


@pytest.mark.parametrize("case", NEAR)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_products_of_rows_keep_digits_where_rows_nearly_cancel(
    case: str, dtype: torch.dtype
) -> None:
    given, tolerance = NEAR[case]
    for dim in (129, 1000):
        features = near(45, dim, dtype, **given)
        # Beyond float16's subnormals.
        scale = 4096.0 * 45
        for weights in ((1.0, 1.0), (0.7, -1.3), (1.0, 0.0), (0.0, 1.0)):
            up = (scale * weights[0], scale * weights[1])
            found = run(features, torch.zeros(dim), up, momentum=0.0)
            true = truth(features, torch.zeros(dim), up, momentum=0.0)
            rounded = {torch.float32: 0.0, torch.bfloat16: 4e-3, torch.float16: 5e-4}[dtype]
            for i, (mine, exact) in enumerate(zip(found, true, strict=True)):
                error = (mine.double() - exact).abs().max() / exact.abs().max()
                assert error <= tolerance + (rounded if i > 2 else 0), (i, weights, error)
            again = run(features, torch.zeros(dim), up, momentum=0.0)
            assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


def near(
    rows: int,
    dim: int,
    dtype: torch.dtype,
    moved: float,
    own: float | None = None,
    longer: float = 0.0,
) -> list[Tensor]:
    """Rows and where they started, as stored: longer by a share, and shifted."""
    made = []
    shift = moved * torch.randn(dim, dtype=torch.float64)
    for _ in range(2):
        start = torch.randn(rows, dim, dtype=torch.float64).to(dtype).double()
        alone = (moved if own is None else own) * torch.randn(rows, dim, dtype=torch.float64)
        made += [start * (1 + longer) + shift + alone, start]
    return [x.to(dtype) for x in made]


@pytest.mark.parametrize(
    "lengths", [(1e-3, 1e3), (1e3, 1e-3), (1e18, 1e18), (1e-9, 1.0), (3e-11, 1e-10), (1e-20, 1e20)]
)
@pytest.mark.parametrize("dim", [65, 1500])
def test_rows_of_any_length(lengths: tuple[float, float], dim: int) -> None:
    f, f0, g, g0 = inputs(33, dim, moved=1.0)
    features = [f * lengths[0], f0 * lengths[1], g * lengths[1], g0 * lengths[0]]
    # Gradients to rows of 1e20 are 1e-20 of those to rows of 1e-20: their own scale holds.
    check(features, torch.zeros(dim), 3e-6, parts=3 if 1e20 in lengths else 5)
    if 1e20 not in lengths:  # both longer, or shorter
        features = [f * lengths[0], f0 * lengths[1], g * lengths[0], g0 * lengths[1]]
        check(features, torch.zeros(dim), 3e-6)


def test_rows_too_long_to_square_in_float32() -> None:
    check([x * 1e25 for x in inputs(9, 33)], torch.zeros(33), 3e-6, parts=3)


def test_one_odd_row_in_a_block_is_scaled_alone() -> None:
    """A team of several warps takes the scaled path with its block, and changes nothing else."""
    for dim in (300, 1500):
        features = inputs(17, dim)
        plain = run(features, torch.zeros(dim), (1, 1))
        features[0][5] *= 2.0**70
        features[1][5] *= 2.0**70
        scaled = run(features, torch.zeros(dim), (1, 1))
        for a, b in zip(plain[:3], scaled[:3], strict=True):
            assert torch.allclose(a, b, rtol=1e-6, atol=1e-9)
        others = torch.arange(17) != 5
        for a, b in zip(plain[3:], scaled[3:], strict=True):
            assert torch.allclose(a[others], b[others], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("dim", [1, 40, 520, 4104])
def test_a_bank_of_strides(dim: int) -> None:
    """Rows that start anywhere: aligned or not, apart, overlapping, reversed copies of one row."""
    wide = torch.randn(23 * (dim + 9) + 64)
    for offset, stride in ((0, dim + 8), (1, dim + 8), (4, dim + 3), (3, 0), (0, 1)):
        view = wide.as_strided((23, dim), (stride, 1), offset)
        features = [view, torch.randn(23, dim), torch.randn(23, 2 * dim)[:, ::2], view]
        a = run(features, torch.zeros(dim), (1, 1))
        b = run([x.contiguous() for x in features], torch.zeros(dim), (1, 1))
        for x, y in zip(a, b, strict=True):
            assert torch.equal(x, y)


def test_the_order_of_threads_and_blocks_changes_no_bit() -> None:
    """A barrier too few, or a sum in the order of arrival, would."""
    card = launcher._Emulator.of(launcher.emulator())
    cases = [inputs(611, 40), inputs(45, 1100), inputs(20, 5000), inputs(90, 520, torch.float16)]
    wanted = [run(x, torch.zeros(x[0].shape[1]), (1, 2)) for x in cases]
    try:
        for seed in (1, 2, 3):
            card.order(seed)
            for features, first in zip(cases, wanted, strict=True):
                again = run(features, torch.zeros(features[0].shape[1]), (1, 2))
                for x, y in zip(first, again, strict=True):
                    assert torch.equal(x, y)
    finally:
        card.order(0)


def test_fresh_memory_may_hold_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = torch.Tensor.new_empty
    wanted = run(inputs_fixed(), torch.zeros(77), (1, 2))
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda *a, **k: plain(*a, **k).fill_(float("nan"))
    )
    for x, y in zip(wanted, run(inputs_fixed(), torch.zeros(77), (1, 2)), strict=True):
        assert torch.equal(x, y)


def inputs_fixed() -> list[Tensor]:
    torch.manual_seed(3)
    return inputs(50, 77)


def test_a_mean_of_another_dtype_and_stride() -> None:
    features = inputs(12, 30)
    mean = torch.randn(60, dtype=torch.float64)[::2]
    a = run(features, mean.float().contiguous(), (1, 1), momentum=0.3)
    b = run(features, mean, (1, 1), momentum=0.3)
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x, y)
