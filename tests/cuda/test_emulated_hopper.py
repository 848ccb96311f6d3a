"""The emulator's sm_90a: bulk copies, barriers that count bytes, warpgroup products."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor

from robustft import backends
from robustft.backends.cuda.launcher import _Emulator

HERE = Path(__file__).parent / "emulator"
_spec = importlib.util.spec_from_file_location("emulator_build", HERE / "build.py")
builder = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(builder)

pytestmark = pytest.mark.skipif(backends.emulating(), reason="needs no CUDA kernel")


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> _Emulator:
    if builder.compiler() is None:
        pytest.skip("no C++ compiler is installed")
    out = tmp_path_factory.mktemp("hopper") / "kernels.so"
    return _Emulator(str(builder.build(out, [HERE / "hopper_kernels.cu"], flags=("-Werror",))))


def swizzled(x: Tensor) -> Tensor:
    """Lines of 64 halves: the 16-byte chunk c of line r at c ^ (r mod 8)."""
    order = torch.arange(8) ^ torch.arange(len(x))[:, None] % 8
    chunks = x.view(len(x), 8, 8)
    return chunks.gather(1, order[:, :, None].expand_as(chunks)).contiguous()


def product(card: _Emulator, a: Tensor, b: Tensor, without: int = 0) -> Tensor:
    n = len(b)
    d = torch.full((64, n), torch.nan)
    args = (swizzled(a), swizzled(b), d, without)
    shared = (64 + n) * 128 + 8
    card.launch("hopper_kernels", f"product<{n}>", (1,), 128, args, shared)
    return d


@pytest.mark.parametrize("order", [0, 1, 2, 3])
@pytest.mark.parametrize("n", [128, 256])
def test_a_warpgroup_product(card: _Emulator, n: int, order: int) -> None:
    card.order(order)
    a, b = torch.randn(64, 64).half(), torch.randn(n, 64).half()
    want = a.double() @ b.double().T
    torch.testing.assert_close(product(card, a, b).double(), want, rtol=1e-5, atol=1e-5)
    # Each entry of A meets the entries of its own column, and no others.
    b = torch.arange(n * 64).remainder(2039).reshape(n, 64).half()
    for i, k in ((0, 0), (5, 9), (13, 31), (40, 32), (63, 63)):
        a = torch.zeros(64, 64).half()
        a[i, k] = 1
        assert torch.equal(product(card, a, b), a.float() @ b.float().T)


# Sixteen at a time and two bits more: of 15·2^-25 three quarters of a unit are cut from the sum.
@pytest.mark.parametrize(("exponent", "units"), [(-26, 0), (-25, 3), (-24, 7)])
@pytest.mark.parametrize("sign", [1, -1])
def test_products_are_cut_as_hopper_cuts_them(
    card: _Emulator, exponent: int, units: int, sign: int
) -> None:
    card.order(0)
    a, b = torch.zeros(64, 64).half(), torch.zeros(128, 64).half()
    a[3, :16], b[5, :16] = sign * 2.0 ** (exponent + 12), 2.0**-12
    a[3, 0], b[5, 0] = sign, 1
    found = product(card, a, b)
    assert found[3, 5] == sign * (1 + units * 2.0**-23)
    found[3, 5] = 0
    assert not found.any()


@pytest.mark.parametrize("without", [1, 3])
def test_operands_that_are_not_there(card: _Emulator, without: int) -> None:
    card.order(0)
    a, b = torch.ones(64, 64).half(), torch.ones(128, 64).half()
    assert product(card, a, b, without).isnan().any()


def test_a_block_that_does_not_wait_for_a_copy(card: _Emulator) -> None:
    card.order(0)
    a, b = torch.ones(64, 64).half(), torch.ones(128, 64).half()
    with pytest.raises(RuntimeError, match="ends before what is copied to it is there"):
        product(card, a, b, 5)


def test_bytes_that_nobody_announced(card: _Emulator) -> None:
    card.order(0)
    a, b = torch.ones(64, 64).half(), torch.ones(128, 64).half()
    with pytest.raises(RuntimeError, match="deadlock: threads 0-127 wait in barrier_wait"):
        product(card, a, b, 2)


def test_products_are_not_there_before_their_wait(card: _Emulator) -> None:
    card.order(0)
    a, b = torch.ones(64, 64).half(), torch.ones(128, 64).half()
    assert not torch.equal(product(card, a, b, 4), torch.full((64, 128), 64.0))
