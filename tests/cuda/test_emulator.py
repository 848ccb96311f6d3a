"""The emulator itself: what it computes, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from robustft import backends
from robustft.backends.cuda.launcher import _Emulator

from .build import EMULATOR, builder

pytestmark = pytest.mark.skipif(backends.emulating(), reason="needs no CUDA kernel")


@pytest.fixture(scope="module", params=["g++", "clang++"])
def card(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> _Emulator:
    cxx = builder.shutil.which(request.param)
    if cxx is None:
        pytest.skip(f"{request.param} is not installed")
    out = tmp_path_factory.mktemp(request.param) / "kernels.so"
    return _Emulator(str(builder.build(out, [EMULATOR / "kernels.cu"], cxx, ("-Werror",))))


@pytest.fixture(params=[0, 1, 2, 3], autouse=True)
def order(request: pytest.FixtureRequest, card: _Emulator) -> int:
    card.order(request.param)
    return request.param


def run(card: _Emulator, kernel: str, grid: tuple, block: int, *args, shared: int = 0) -> None:
    card.launch("kernels", kernel, grid, block, args, shared)


def test_copies_ldmatrix_and_mma_are_a_product(card: _Emulator) -> None:
    a, b = torch.randn(48, 80).half(), torch.randn(32, 80).half()
    c = torch.empty(48, 32)
    run(card, "product<true>", (2, 3), 32, a, b, c, 32, 80, shared=2 * 16 * 24 * 2)
    assert torch.allclose(c.double(), a.double() @ b.double().T, rtol=1e-5, atol=1e-5)
    # One element each: an entry of A meets the entry of B in its own column, and no other.
    for i, j in ((0, 0), (5, 9), (13, 6), (8, 15)):
        a, b = torch.zeros(16, 16).half(), torch.arange(256).reshape(16, 16).half()
        a[i, j] = 1
        c = torch.empty(16, 16)
        run(card, "product<true>", (1, 1), 32, a, b, c, 16, 16, shared=2 * 16 * 24 * 2)
        assert torch.equal(c, a.float() @ b.float().T)


# (exponent of the small products, units of 2^-23 beyond 1). Eight at a time and one bit more than a
# float32 has: 2^-25 is cut from each product, of 7·2^-24 a half is cut from the first sum.
@pytest.mark.parametrize(("exponent", "units"), [(-25, 0), (-24, 7), (-23, 15)])
@pytest.mark.parametrize("sign", [1, -1])
def test_products_are_cut_as_tensor_cores_cut_them(
    card: _Emulator, exponent: int, units: int, sign: int
) -> None:
    a, b = torch.zeros(16, 16).half(), torch.zeros(16, 16).half()
    a[3], b[5] = sign * 2.0 ** (exponent + 12), 2.0**-12
    a[3, 0], b[5, 0] = sign, 1
    c = torch.empty(16, 16)
    run(card, "product<true>", (1, 1), 32, a, b, c, 16, 16, shared=2 * 16 * 24 * 2)
    assert c[3, 5] == sign * (1 + units * 2.0**-23)
    c[3, 5] = 0
    assert not c.any()


def test_a_copy_is_not_there_before_its_wait(card: _Emulator) -> None:
    a, c = torch.ones(16, 16).half(), torch.zeros(16, 16)
    run(card, "product<false>", (1, 1), 32, a, a, c, 16, 16, shared=2 * 16 * 24 * 2)
    assert c.isnan().all()


def test_ldmatrix_trans_transposes_each_matrix(card: _Emulator) -> None:
    x = torch.arange(256).short()
    out = torch.empty(128, dtype=torch.int32)
    run(card, "transpose", (1,), 32, x, out)
    low, high = out & 0xFFFF, out >> 16
    pairs = torch.stack([low, high], -1).reshape(32, 4, 2)  # lane, matrix, element
    matrices = x.reshape(4, 8, 8)
    for lane in range(32):
        for matrix in range(4):
            row = matrices[matrix].T[lane // 4]
            assert pairs[lane, matrix].tolist() == row[lane % 4 * 2 : lane % 4 * 2 + 2].tolist()


@pytest.mark.parametrize("n", [1, 127, 224])
def test_a_block_sum(card: _Emulator, n: int) -> None:
    x, out = torch.randn(5, n), torch.empty(5)
    run(card, "block_sum<true>", (5,), 224, x, out, n)
    assert torch.allclose(out, x.sum(1), rtol=1e-5, atol=1e-5)


def test_a_missing_barrier_shows_in_some_order(card: _Emulator, order: int) -> None:
    x, out = torch.ones(5, 64), torch.empty(5)
    run(card, "block_sum<false>", (5,), 64, x, out, 64)
    if order < 2:  # warp 0 first, or last
        assert out.isnan().all() == (order == 0)


def test_votes_scans_and_atomics(card: _Emulator) -> None:
    block, n = 96, 37
    out = torch.empty(3, block, 9, dtype=torch.int32)
    counter = torch.zeros(1, dtype=torch.int32)
    run(card, "integers", (3,), block, out, counter, n)
    assert counter.item() == 3 * n
    t = torch.arange(block, dtype=torch.int32)
    lane = t % 32
    expected = torch.stack(
        [
            torch.full_like(t, -0x55555556),  # 0xaaaaaaaa
            torch.full_like(t, n),
            torch.ones_like(t),
            torch.zeros_like(t),
            lane * (lane + 1) // 2,
            torch.where(lane < 16, 120, 0),
            torch.where(t % 8 == 7, t, t + 1),
            t // 8 * 8,
            (t // 32 == n // 32).int(),
        ],
        1,
    ).int()
    assert torch.equal(out, expected.expand(3, -1, -1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_16_bit_number_converts_and_rounding_is_to_even(
    card: _Emulator, dtype: torch.dtype
) -> None:
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).short()
    x = bits.view(dtype)
    wide = x.float()
    # Numbers between neighbours: exactly half way, just above and just below; and any others.
    up = torch.nextafter(x, torch.full_like(x, torch.inf)).float()
    half = wide + (up - wide) / 2
    for y in (wide, half, half * (1 + 2e-7), half * (1 - 2e-7), torch.randn(2**16).exp() - 1):
        got, narrow = torch.empty(2**16), torch.empty(2**16, dtype=dtype)
        name = {torch.float16: "Half", torch.bfloat16: "BFloat16"}[dtype]
        run(card, f"convert<{name}>", (256,), 256, x, got, y, narrow, 2**16)
        assert torch.equal(
            got.view(torch.int32)[~wide.isnan()], wide.view(torch.int32)[~wide.isnan()]
        )
        assert torch.equal(narrow, y.to(dtype)) or torch.equal(
            narrow[~y.isnan()], y.to(dtype)[~y.isnan()]
        )
        assert narrow[y.isnan()].isnan().all()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (1, r"at different barriers: __syncthreads at .*kernels\.cu:\d+"),
        (2, r"deadlock: threads 0-30 wait in __syncwarp for lanes ffffffff .* 31-31 have ended"),
        (3, r"deadlock: threads 0-15 wait in __shfl_sync .* threads 16-31 wait in __syncthreads"),
        (5, "aligned to 16 bytes"),
        (6, "lane 0 reads lane 20, which is not in mask 0000ffff"),
        (7, "without itself"),
        (8, "meet in different collectives"),
    ],
)
def test_what_must_not_happen_is_reported(card: _Emulator, what: int, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        run(card, "wrong", (2,), 64, torch.empty(256), what, shared=1024)
    run(card, "wrong", (2,), 64, torch.empty(256), 0, shared=1024)  # and the next launch runs


def test_what_was_never_written_is_nan(card: _Emulator) -> None:
    out = torch.zeros(64)
    run(card, "wrong", (1,), 64, out, 4, shared=256)
    assert out.isnan().all()


def test_a_launch_that_no_card_takes(card: _Emulator) -> None:
    for grid, block, shared in (((0,), 32, 0), ((1,), 1056, 0), ((1,), 32, 228 << 10)):
        with pytest.raises(RuntimeError, match="is no launch"):
            run(card, "wrong", grid, block, torch.empty(1), 4, shared=shared)
    for blocks, cluster in ((3, 2), (16, 16)):
        with pytest.raises(RuntimeError, match=f"in clusters of {cluster}, is no launch"):
            card.launch("kernels", "wrong", (blocks,), 32, (torch.empty(1), 4), 0, cluster)
    with pytest.raises(RuntimeError, match=r"no INSTANTIATE\(nothing\) in kernels.cu"):
        run(card, "nothing", (1,), 32)
