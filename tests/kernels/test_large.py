"""Sizes at which 32 bits, a grid or memory would not do: plans, and memory hardly touched."""

import math
import mmap

import pytest
import torch

from robustft import backends
from robustft.backends import contrast

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.skipif(not backends.interpreting(), reason="runs under TRITON_INTERPRET=1"),
]
if backends.interpreting():
    from robustft.backends.options import MpmNceOptions, Positives
    from robustft.backends.reference import mpm_nce as reference
    from robustft.kernels import launch, mpm_nce, rsa

FIELD = 1 << 29  # 4 of them, or 5, are beyond 2^31
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Python 3.11 has no name for it


def mapped(words: int) -> torch.Tensor:
    """float32 words of zero, as much memory as is touched; the middle of what is mapped, so that a
    place that is computed wrong is still one."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
    whole = torch.frombuffer(mmap.mmap(-1, 4 * 3 * words, flags=flags), dtype=torch.float32)
    return whole[words : 2 * words]


def test_rsa_has_its_fields_in_place():
    a, b = torch.randn(40, 8), torch.randn(40, 8)
    norms = [x.square().sum(1) for x in (a, b)]
    found = []
    for field in (1, FIELD):
        out = mapped(5 * field + 1)
        rsa.moments_tiles[(1, 1)](
            a, b, *norms, out, 40, 8, 8, field, COSINE=False, EVEN_A=False, EVEN_B=False,
            BLOCK=64, BLOCK_K=32,
        )  # fmt: skip
        found.append(out[::field].clone())
    assert found[0].tolist() == found[1].tolist()
    assert (found[0] != 0).all()


PLAN = {"strides": (512, 512, 0), "kind": 1, "has_margin": True, "smooth": True, "symmetric": True,
        "no_self": False, "ignore": -100, "tf32": False}  # fmt: skip


@pytest.fixture
def as_on_a_card(monkeypatch):
    """The tiles of a card, in plans that are not launched."""
    options = {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 8, "num_stages": 3}
    monkeypatch.setattr(mpm_nce, "config", lambda *_: options)
    launch.forget()
    yield
    launch.forget()


def _held(launches):
    for each in launches:
        if each._function is not mpm_nce.grad_finish:  # which counts with 64 bits
            assert all(number < 1 << 31 for number in each._numbers)
        assert each._grid[0] < 1 << 31
        assert max(each._grid[1:]) <= 65535


@pytest.mark.parametrize("rows", [1, 4096, 262_144])
@pytest.mark.parametrize("columns", [32, 262_144, 9_000_000])
def test_mpm_nce_plans_stay_within_memory_and_grids(rows, columns, as_on_a_card):
    cpu = torch.device("cpu")
    forward = mpm_nce._forward_plan(cpu, torch.bfloat16, rows, columns, 512, **PLAN)
    _held([each for slab in forward.slabs for each in slab if each is not None])
    _held([forward.merge])
    # One block of rows has to fit; the numbers of all columns and rows are needed anyway.
    needed = 5 * 4 * (2 * columns + 128 * (columns // 1024 + 1)) + 4 * (rows + columns)
    assert 4 * forward.scratch <= contrast.SCRATCH + needed
    # Multiples of the fields are addresses in 32 bits.
    assert forward.scratch < 1 << 31
    backward = mpm_nce._backward_plan(
        cpu, torch.bfloat16, torch.float32, rows, columns, 512, need_image=True, need_text=True,
        **PLAN,
    )  # fmt: skip
    _held([x for block in backward.blocks for x in (block.tiles, block.finish) if x is not None])
    assert 2 * math.prod(backward.largest) <= max(contrast.WORKSPACE, 2 * 128 * 128)
    assert {block.rows.stop for block in backward.blocks} >= {rows}
    assert sum(
        (block.rows.stop - block.rows.start) * (block.columns.stop - block.columns.start)
        for block in backward.blocks
    ) == rows * columns  # fmt: skip


def test_squares_rewrite_the_products_least(as_on_a_card):
    rows, columns = contrast.squares(32768, 32768, 128, 128, 2)
    assert len(rows) == len(columns) == 4


def _case(rows, columns, dtype=torch.float32):
    unit = torch.nn.functional.normalize
    x, y = (unit(torch.randn(n, 33), dim=1).to(dtype) for n in (rows, columns))
    return x, y, Positives(torch.randint(7, (rows,)), torch.randint(7, (columns,)), None, -100)


@pytest.mark.parametrize(("symmetric", "no_self"), [(True, False), (True, True), (False, False)])
def test_slabs_of_rows_give_the_whole(symmetric, no_self, monkeypatch):
    x, y, pairs = _case(131, 131 if no_self else 67)
    options, scale = MpmNceOptions(0.1, 0.2, symmetric, no_self), torch.tensor(30.0)
    launch.forget()
    whole = mpm_nce.forward(x, y, pairs, scale, options, 0)
    launch.forget()
    monkeypatch.setattr(contrast, "SCRATCH", 1)  # a block of 32 rows each
    parts = mpm_nce.forward(x, y, pairs, scale, options, 0)
    launch.forget()
    for found, wanted in zip(parts, whole, strict=True):
        torch.testing.assert_close(found, wanted, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_squares_of_a_small_workspace_leave_the_gradients(dtype, monkeypatch):
    x, y, pairs = _case(131, 150, dtype)
    scale, options = torch.tensor(30.0), MpmNceOptions(0.1, 0.2, True)
    launch.forget()
    _, *saved = mpm_nce.forward(x, y, pairs, scale, options, 0)
    arguments = (x, y, pairs, scale, *saved, torch.tensor(1.5), options)
    needs = ((True, True), (True, False), (False, True))
    whole = [mpm_nce.backward(*arguments, *need) for need in needs]
    launch.forget()
    monkeypatch.setattr(contrast, "WORKSPACE", 32 * 64 * x.element_size())  # 5 × 3 blocks
    for need, once in zip(needs, whole, strict=True):
        for found, wanted in zip(mpm_nce.backward(*arguments, *need), once, strict=True):
            assert found.shape == wanted.shape
            if found.numel():
                torch.testing.assert_close(
                    found, wanted, rtol=0, atol=1e-3 * wanted.float().abs().max().item()
                )
    launch.forget()


def test_one_anchor_of_many_has_finite_gradients_in_float16():
    x = torch.nn.functional.normalize(torch.randn(2, 8), dim=1).half()
    y = torch.nn.functional.normalize(torch.randn(40_000, 8), dim=1).half()
    pairs = Positives(torch.tensor([0, -100]), torch.arange(40_000), None, -100)
    scale, options = torch.tensor(30.0), MpmNceOptions(0.0, 0.0, False)
    y[7] = x[0]  # nearest, and no positive: p is near 1
    found = []
    for module, inputs in (
        (mpm_nce, (x, y, scale)), (reference, (x.double(), y.double(), scale.double())),
    ):  # fmt: skip
        a, b, s = inputs
        s = 100 * s
        _, *saved = module.forward(a, b, pairs, s, options, 0)
        one = torch.ones((), dtype=s.dtype)
        found.append(module.backward(a, b, pairs, s, *saved, one, options, True, True))
    for mine, true in zip(*found, strict=True):
        assert mine.isfinite().all()
        torch.testing.assert_close(mine.double(), true, rtol=2e-3, atol=2e-3)
