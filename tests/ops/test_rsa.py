"""rsa against float64 formulas in NumPy: all distances, corrcoef, and ranks by counting."""

import math

import numpy as np
import pytest
import torch

from robustft.backends.reference import rsa as reference
from robustft.errors import InputError, InputTypeError
from robustft.ops import rsa

from .test_mpm_nce_op import Largest

CHOICES = [(m, c) for m in ("euclidean", "cosine") for c in ("pearson", "spearman")]


def normal(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def related(n, d=9, noise=0.7, dtype=torch.float64):
    a = normal(n, d, seed=1)
    return a.to(dtype), (a + noise * normal(n, d, seed=2)).to(dtype)


def distances(rows, metric):
    """Σ(a − b)² pair by pair in NumPy, i < j."""
    rows = rows.double().numpy()
    if metric == "cosine":
        rows = rows / np.sqrt((rows**2).sum(1, keepdims=True))
    i, j = np.triu_indices(len(rows), 1)
    squared = ((rows[i] - rows[j]) ** 2).sum(1)
    return squared / 2 if metric == "cosine" else np.sqrt(squared)


def ranks(x):
    """Mean ranks: how many are smaller, and half of how many are equal."""
    order = np.sort(x)
    return (np.searchsorted(order, x, "left") + np.searchsorted(order, x, "right") + 1) / 2


def truth(a, b, metric, method, digits=None):
    x, y = distances(a, metric), distances(b, metric)
    if digits is not None:  # distances that are equal on paper
        x, y = x.round(digits), y.round(digits)
    if method == "spearman":
        x, y = ranks(x), ranks(y)
    return np.corrcoef(x, y)[0, 1]


@pytest.fixture(params=[1024, 32, 7])
def _tile(request, monkeypatch):
    monkeypatch.setattr(reference, "TILE", request.param)


@pytest.mark.usefixtures("_tile")
@pytest.mark.parametrize(("metric", "method"), CHOICES)
@pytest.mark.parametrize("n", [3, 7, 127, 129])
def test_equals_the_formula(n, metric, method):
    a, b = related(n)
    got = rsa(a, b, metric=metric, method=method)
    assert got.dtype == torch.float64
    assert got.shape == ()
    assert got.item() == pytest.approx(truth(a, b, metric, method), rel=0, abs=1e-12)


@pytest.mark.parametrize(("metric", "method"), CHOICES)
def test_definition(metric, method):
    a, b = related(57)
    want = truth(a, b, metric, method)
    assert reference.rsa(a, b, metric, method).item() == pytest.approx(want, rel=0, abs=1e-12)


@pytest.mark.parametrize("method", ["pearson", "spearman"])
def test_translation_rotation_and_scale_keep_all(method):
    a = normal(129, 9)
    rotation = torch.linalg.qr(normal(9, 9, seed=5)).Q
    for b in (a + 1000 * normal(9, seed=3), a @ rotation, 3 * a):
        assert rsa(a, b, method=method).item() == pytest.approx(1, rel=0, abs=1e-9)
    assert rsa(a, a @ rotation, metric="cosine", method=method).item() == pytest.approx(1, abs=1e-9)
    assert rsa(a, a + 3, metric="cosine", method=method) < 0.99  # a translation turns directions


def test_translated_float32_features():
    a = normal(129, 9, dtype=torch.float32)
    assert rsa(a, a + 0.5).item() == pytest.approx(1, rel=0, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("metric", "method"), CHOICES)
def test_low_precision_inputs_are_taken_exactly(dtype, metric, method):
    a, b = related(67, dtype=dtype)
    want = truth(a, b, metric, method, digits=None if method == "pearson" else 9)
    with torch.autocast("cpu", torch.bfloat16):
        got = rsa(a, b, metric=metric, method=method, backend="reference")
    assert got.item() == pytest.approx(want, rel=0, abs=1e-9)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_near_duplicates_keep_their_digits(metric):
    # Distances of 1e-7 about a row of length 3: |a|² + |b|² − 2<a, b> would have two digits left.
    a = 1 + 1e-7 * normal(61, 9, seed=1)
    b = 1 + 1e-7 * normal(61, 9, seed=2) + 0.3 * (a - 1)
    assert rsa(a, b, metric=metric).item() == pytest.approx(
        truth(a, b, metric, "pearson"), rel=0, abs=1e-6
    )
    pairs = torch.cat([a, 1 + 1e3 * normal(30, 9, seed=4)])  # the mean of all does not help
    space = reference._Space.of(pairs, metric)
    (found,) = space.all_distances()
    want = torch.from_numpy(distances(pairs, metric))
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-15)


def test_ties_share_their_mean_rank():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(4, (67, 3), generator=generator).double() for _ in range(2))
    b = torch.where(torch.rand(67, 1, generator=generator) < 0.7, a, b)
    for other in (b, b / 3 + 11):  # the same ties in other roundings
        got = rsa(a, other, method="spearman").item()
        assert got == pytest.approx(truth(a, b, "euclidean", "spearman", 9), rel=0, abs=1e-12)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("bins", [64, 1024])
def test_ranks_by_bins_stay_within_the_stated_error(metric, bins, monkeypatch):
    a, b = related(311)
    want = truth(a, b, metric, "spearman")
    monkeypatch.setattr(reference, "EXACT", 100)
    monkeypatch.setattr(reference, "BINS", bins)
    monkeypatch.setattr(reference, "_SAMPLE", 160)
    monkeypatch.setattr(reference, "TILE", 64)
    got = rsa(a, b, metric=metric, method="spearman").item()
    largest = 0.0
    for rows in (a, b):
        edges = reference._quantiles(reference._Space.of(rows, metric)).numpy()
        count = np.bincount(np.searchsorted(edges, distances(rows, metric)))
        largest += count.max() / count.sum()
    assert 0 < abs(got - want) <= largest
    assert abs(got - want) < 20 / bins**2


@pytest.mark.slow
def test_ranks_by_bins_at_the_real_limit():
    n = reference.EXACT + 1
    a = normal(n, 2, seed=1, dtype=torch.float32)
    b = a + 0.5 * normal(n, 2, seed=2, dtype=torch.float32)
    got = rsa(a, b, method="spearman").item()
    exact = rsa(a[:-1], b[:-1], method="spearman").item()  # all pairs ranked
    assert got == pytest.approx(exact, rel=0, abs=1e-3)
    assert rsa(a, a, method="spearman").item() == pytest.approx(1, abs=1e-12)


def test_order_of_the_samples_does_not_matter():
    a, b = related(127)
    order = torch.randperm(127, generator=torch.Generator().manual_seed(0))
    for metric, method in CHOICES:
        torch.testing.assert_close(
            rsa(a, b, metric=metric, method=method),
            rsa(b[order], a[order], metric=metric, method=method),
            rtol=0,
            atol=1e-12,
        )


def test_widths_may_differ_and_strides_do_not_matter():
    a, b = related(127)
    wide = torch.cat([b, torch.zeros(127, 4)], 1)
    assert rsa(a, wide).item() == pytest.approx(rsa(a, b).item(), abs=1e-13)
    # No bits: a library may multiply other layouts in another order.
    assert rsa(a.T.contiguous().T, b).item() == pytest.approx(rsa(a, b).item(), abs=1e-13)


@pytest.mark.parametrize(("metric", "method"), CHOICES)
def test_nan_where_there_is_no_correlation(metric, method):
    a, b = related(67)
    constant = torch.eye(67).double() + (0.1 if metric == "euclidean" else 0.0)
    assert rsa(a, constant, metric=metric, method=method).isnan()
    assert rsa(constant, b, metric=metric, method=method).isnan()
    assert rsa(torch.ones(67, 3), b, metric=metric, method=method).isnan()
    for bad in (math.nan, math.inf, -math.inf):
        a, b = related(67)
        b[3, 2] = bad
        assert rsa(a, b, metric=metric, method=method).isnan()


def features(case, n):
    """Features of which one metric has no correlation, or no cosine."""
    rows = normal(n, 9, seed=3, dtype=torch.float32)
    if case == "a zero row":
        rows[1] = 0
    elif case == "the last row zero":
        rows[-1] = 0
    elif case == "all rows zero":
        rows.zero_()
    elif case == "constant rows":
        rows[:] = rows[:1]
    elif case == "rows of one direction":
        rows[:] = (rows[:1] * 8).round() * torch.arange(1.0, n + 1)[:, None]  # exactly
    return rows


NO_COSINE = ["a zero row", "the last row zero", "all rows zero"]


@pytest.mark.parametrize("method", ["pearson", "spearman"])
@pytest.mark.parametrize("case", [*NO_COSINE, "constant rows", "rows of one direction"])
@pytest.mark.parametrize("n", [3, 67, 131])
def test_no_cosine_no_correlation(case, method, n, cpu_backend, monkeypatch):
    if n == 131:
        monkeypatch.setattr(reference, "EXACT", 100)  # ranks by bins
    other, rows = features("", n), features(case, n)
    for pair in ((rows, other), (other, rows), (rows, rows)):
        assert rsa(*pair, metric="cosine", method=method, backend=cpu_backend).isnan()
    if case in NO_COSINE:
        assert reference.rsa(rows.double(), other.double(), "cosine", method).isnan()


@pytest.mark.parametrize("method", ["pearson", "spearman"])
def test_a_zero_row_has_distances(method, cpu_backend):
    other = features("", 67)
    for case in ("a zero row", "rows of one direction"):
        assert rsa(features(case, 67), other, method=method, backend=cpu_backend).isfinite()
    for case in ("all rows zero", "constant rows"):
        assert rsa(features(case, 67), other, method=method, backend=cpu_backend).isnan()


@pytest.mark.parametrize("method", ["pearson", "spearman"])
def test_no_matrix_of_all_distances(method, monkeypatch):
    monkeypatch.setattr(reference, "TILE", 64)
    monkeypatch.setattr(reference, "EXACT", 100)
    monkeypatch.setattr(reference, "_SAMPLE", 60)
    monkeypatch.setattr(reference, "BINS", 256)
    a, b = related(1009, d=3)
    with Largest() as largest:
        rsa(a, b, method=method)
    assert largest.elements <= 2 * 64 * 64  # indices of a tile's pairs


def test_many_duplicates_are_recomputed_in_parts(monkeypatch):
    monkeypatch.setattr(reference, "TILE", 16)
    a = normal(3, 9)[torch.arange(131) % 3]
    b = a + 0.1 * normal(131, 9, seed=4)
    assert rsa(a, b).item() == pytest.approx(truth(a, b, "euclidean", "pearson"), abs=1e-12)


def test_no_gradient():
    a, b = related(13)
    assert not rsa(a.requires_grad_(), b.requires_grad_()).requires_grad


def test_opcheck():
    a, b = related(13)
    for metric, method in CHOICES:
        torch.library.opcheck(
            torch.ops.robustft.rsa_correlation.default, (a, b, metric, method, "reference")
        )


def test_compiles_to_one_graph():
    a, b = related(13)
    compiled = torch.compile(lambda a, b: rsa(a * 2, b) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(a, b), rsa(a * 2, b) + 1)


A, B = related(5)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((A.tolist(), B), {}, "features_pretrained: got list"),
        ((A.int(), B), {}, "features_pretrained: got dtype torch.int32"),
        ((A[:, 0], B), {}, r"features_pretrained: got shape \(5,\), expected \[N, D\]"),
        ((A[:2], B[:2]), {}, "features_pretrained: got 2 rows, expected at least 3"),
        ((A, B[:4]), {}, "features_finetuned: got 4 rows, expected 5"),
        ((A, B[:, :0]), {}, "features_finetuned: got an empty tensor"),
        ((A, B.to("meta")), {}, "features_finetuned: got device meta, expected cpu"),
        ((A, B), {"metric": "l2"}, "metric: got 'l2', expected one of"),
        ((A, B), {"method": "kendall"}, "method: got 'kendall', expected one of"),
        ((A, B), {"backend": "gpu"}, "backend: got 'gpu'"),
    ],
)
def test_errors_name_the_argument(args, kwargs, message):
    with pytest.raises(InputError, match=message):
        rsa(*args, **kwargs)


def test_type_errors_are_type_errors():
    with pytest.raises(InputTypeError):
        rsa(A.int(), B)
