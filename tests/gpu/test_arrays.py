"""CuPy arrays: taken through DLPack without a copy, on the streams of both libraries."""

from __future__ import annotations

import pytest
import torch

from robustft.ops import FeatureBank, dive_loss, knn, mpm_nce

pytestmark = pytest.mark.gpu


@pytest.fixture
def cupy(real_card):
    return pytest.importorskip("cupy")


def test_every_kind_of_answer(cupy):
    cupy.random.seed(0)
    f, f0, g, g0 = (cupy.random.standard_normal((67, 65), dtype=cupy.float32) for _ in range(4))
    mean, labels = cupy.zeros(65, cupy.float32), cupy.arange(67) % 7
    bank = FeatureBank(g)
    for op, args in (
        (dive_loss, (f, f0, g, g0, mean)), (mpm_nce, (f, g, labels, labels)), (knn, (f, g, 5)),
    ):  # fmt: skip
        found = op(*args)
        wanted = op(*(torch.from_dlpack(x) if hasattr(x, "__dlpack__") else x for x in args))
        if not isinstance(wanted, tuple):
            found, wanted = (found,), (wanted,)
        for mine, true in zip(found, wanted, strict=True):
            assert isinstance(mine, cupy.ndarray)
            assert torch.equal(torch.from_dlpack(mine), true)
    distances, _ = knn(f, bank, 5)
    assert torch.equal(torch.from_dlpack(distances), torch.from_dlpack(knn(f, g, 5)[0]))


def test_streams_wait_for_each_other(cupy, real_card):
    """CuPy computes on a stream of its own, torch on its current one."""
    rows = cupy.random.standard_normal((512, 64), dtype=cupy.float32)
    wanted, _ = knn(2 * rows[:16], rows, 3)
    busy = cupy.random.standard_normal((4096, 4096), dtype=cupy.float32)
    with cupy.cuda.Stream(non_blocking=True):
        for _ in range(20):
            busy = cupy.clip(busy @ busy, -1, 1)
        queries = 2 * rows[:16] + 0 * busy[0, 0]
        found, _ = knn(queries, rows, 3)
        doubled = found * 2
        cupy.cuda.get_current_stream().synchronize()
    assert cupy.array_equal(doubled, 2 * wanted)
