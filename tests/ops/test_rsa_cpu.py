"""rsa's C++ kernel against float64 formulas in NumPy, and against the reference where both agree.

A float32 distance is right to some 1e-7 of its size. Over the spread of the distances, and
averaged over the pairs, that is the error of the result: 1e-6 but for a handful of rows.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from robustft.backends.reference import rsa as reference
from robustft.ops import rsa

METRICS = ("euclidean", "cosine")
pytestmark = pytest.mark.usefixtures("native")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def related(n: int, d: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    a = normal(n, d, seed=1)
    return a.to(dtype), (a + 0.7 * normal(n, d, seed=2)).to(dtype)


def distances(rows: Tensor, metric: str) -> np.ndarray:
    """Σ(a − b)² pair by pair in float64, i < j."""
    x = rows.double().numpy()
    if metric == "cosine":
        x = x / np.sqrt((x**2).sum(1, keepdims=True))
    squared = np.concatenate([((x[i] - x[i + 1 :]) ** 2).sum(1) for i in range(len(x))])
    return squared / 2 if metric == "cosine" else np.sqrt(squared)


def check(a: Tensor, b: Tensor, metric: str) -> None:
    got = rsa(a, b, metric=metric, backend="cpu")
    assert (got.dtype, got.shape) == (torch.float64, ())
    x, y = distances(a, metric), distances(b, metric)
    narrow = max(d.mean() / d.std() for d in (x, y))
    tolerance = max(1e-6, 5e-7 * narrow / math.sqrt(len(x)))
    assert got.item() == pytest.approx(np.corrcoef(x, y)[0, 1], rel=0, abs=tolerance)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [(3, 2), (4, 129), (31, 1), (33, 7), (127, 97), (509, 129)])
def test_matches_float64(size: tuple[int, int], dtype: torch.dtype, metric: str) -> None:
    check(*related(*size, dtype), metric)


def test_every_number_of_rows_about_a_tile() -> None:
    for n in (*range(3, 70), 95, 96, 97, 191, 192, 193):
        check(*related(n, 5), "euclidean")


@pytest.mark.parametrize("metric", METRICS)
def test_more_columns_than_a_chunk(metric: str) -> None:
    a, b = related(2111, 13)
    check(a, b[:, :7], metric)


@pytest.mark.parametrize("metric", METRICS)
def test_duplicates_and_near_duplicates_keep_their_digits(
    metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two thirds of the distances are 1e-3 or 0, which |a|² + |b|² − 2<a, b> would not know."""
    groups = torch.arange(201) % 3
    a = normal(3, 64, seed=1)[groups]
    b = a + 0.3 * normal(3, 64, seed=4)[groups]
    a, b = a + 1e-3 * normal(201, 64, seed=2), b + 1e-3 * normal(201, 64, seed=3)
    check(a, b, metric)
    a = normal(2, 64, seed=1)[groups % 2]
    one = 2e-3 * normal(201, 64, seed=5)  # within the groups, only what the re-summing sees
    check(a + one, a * 1e-3 + one, metric)
    # Ranks see each of the small distances.
    want = rsa((a + one).double(), one.double(), metric=metric, method="spearman").item()
    monkeypatch.setattr(reference, "EXACT", 100)
    got = rsa(a + one, one, metric=metric, method="spearman", backend="cpu").item()
    assert got == pytest.approx(want, rel=0, abs=1e-5)


@pytest.mark.parametrize("offset", [10.0, 1000.0])
def test_a_mean_far_from_zero(offset: float) -> None:
    a, b = related(127, 33)
    check(a + offset, b - offset, "euclidean")
    check(a + 10, b - 10, "cosine")


def test_rows_of_any_size() -> None:
    a, b = related(127, 33)
    want = rsa(a, b, backend="cpu")
    for x, y in ((a * 2.0**100, b * 2.0**-100), (a * 2.0**-110, b * 2.0**120)):
        assert torch.equal(rsa(x, y, backend="cpu"), want)
    a[5] *= 1e4  # the other rows are then close, beside the mean
    check(a, b, "euclidean")


@pytest.mark.parametrize("method", ["pearson", "spearman"])
def test_collapsed_distances_are_the_references(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Distances that differ by less than float32 knows: constant ones, and nearly constant ones."""
    monkeypatch.setattr(reference, "EXACT", 50)
    monkeypatch.setattr(reference, "BINS", 64)
    _, b = related(67, 67)
    assert rsa(torch.eye(67), b, method=method, backend="cpu").isnan()
    assert rsa(b, torch.ones(67, 3), method=method, backend="cpu").isnan()
    nearly = torch.eye(67) + 1e-4 * b
    got, want = (rsa(nearly, b, method=method, backend=x) for x in ("cpu", "reference"))
    assert want.isfinite()
    assert torch.equal(got, want)


@pytest.mark.parametrize("metric", METRICS)
def test_nan_and_inf_give_nan(metric: str) -> None:
    for bad in (math.nan, math.inf, -math.inf):
        a, b = related(67, 9)
        b[3, 2] = bad
        assert rsa(a, b, metric=metric, backend="cpu").isnan()
        assert rsa(b, a, metric=metric, backend="cpu").isnan()
    a, b = related(67, 9)
    b[3] = 0
    assert rsa(a, b, metric="cosine", backend="cpu").isnan()
    check(a, b, "euclidean")


def test_strides_and_mixed_dtypes() -> None:
    a, b = related(127, 9)
    want = rsa(a, b, backend="cpu")
    assert torch.equal(rsa(a.T.contiguous().T, b, backend="cpu"), want)
    assert torch.equal(rsa(a.repeat_interleave(2, 0)[::2], b, backend="cpu"), want)
    assert torch.equal(rsa(a.repeat_interleave(2, 1)[:, ::2], b, backend="cpu"), want)
    check(a, b.bfloat16(), "euclidean")
    double = rsa(a, b.double(), backend="cpu")  # float64 is the reference's
    assert torch.equal(double, rsa(a.double(), b.double(), backend="reference"))
    check(a[:1].expand(127, 9) + 0.1 * b, a, "euclidean")


@pytest.mark.parametrize("method", ["pearson", "spearman"])
def test_threads_change_no_bit(
    method: str, with_threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "EXACT", 100)
    a, b = related(2503, 17)
    results = []
    for threads in (1, 2, 3, 5, 2):
        with_threads(threads)
        results.append(rsa(a, b, method=method, backend="cpu"))
    assert all(torch.equal(x, results[0]) for x in results)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("bins", [64, 1024])
def test_ranks_by_bins(metric: str, bins: int, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = related(311, 9)
    a[:40] *= 1e-3  # a peak of near-zero distances: edges of many sizes in one cell
    exact = rsa(a.double(), b.double(), metric=metric, method="spearman").item()
    monkeypatch.setattr(reference, "EXACT", 100)
    monkeypatch.setattr(reference, "BINS", bins)
    monkeypatch.setattr(reference, "_SAMPLE", 160)
    got = rsa(a, b, metric=metric, method="spearman", backend="cpu").item()
    plain = rsa(a, b, metric=metric, method="spearman", backend="reference").item()
    assert abs(got - exact) < 20 / bins**2
    # The same bins: apart only where float32 puts a distance on the other side of an edge.
    assert got == pytest.approx(plain, rel=0, abs=3e-6)


def test_ties_share_their_mean_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(4, (301, 3), generator=generator).float() for _ in range(2))
    b = torch.where(torch.rand(301, 1, generator=generator) < 0.7, a, b)
    want = rsa(a.double(), b.double(), method="spearman").item()
    monkeypatch.setattr(reference, "EXACT", 100)
    for other in (b, b * 0.75 + 11):  # the same ties in other roundings
        got = rsa(a, other, method="spearman", backend="cpu").item()
        assert got == pytest.approx(want, rel=0, abs=1e-6)


def test_exact_ranks_are_the_references() -> None:
    a, b = related(127, 9)
    got, want = (rsa(a, b, method="spearman", backend=x) for x in ("cpu", "reference"))
    assert torch.equal(got, want)


def test_opcheck() -> None:
    a, b = related(13, 5)
    for metric in METRICS:
        torch.library.opcheck(
            torch.ops.robustft.rsa_correlation.default, (a, b, metric, "pearson", "cpu")
        )


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_every_instruction_set(isa: str) -> None:
    from robustft import _native

    if isa not in _native.isas():
        pytest.skip(f"this processor or build does not run {isa}")
    chosen = "matches_float64 or about_a_tile or chunk or duplicates or bins or ties"
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", __file__, "-k", chosen],
        env=os.environ | {"ROBUSTFT_CPU_ISA": isa},
        check=True,
        timeout=300,
    )


@pytest.mark.slow
def test_memory_at_20000_rows() -> None:
    script = """
import resource, torch
from robustft.ops import rsa
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
a, b = torch.randn(20000, 512), torch.randn(20000, 512)
small = torch.randn(100, 8)
rsa(small, small, backend="cpu")
before = peak()
rsa(a, b, backend="cpu")
assert peak() - before < 200, peak() - before
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=300)
