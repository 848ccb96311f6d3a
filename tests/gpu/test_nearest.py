"""The search on tensors of the card: exact at sizes and k that the CPU tests cannot afford."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from robustft.ops import FeatureBank, knn, kth_distance

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _every_search_reaches_a_kernel(monkeypatch):
    """A small bank, or a large k, is searched by the reference: that would test nothing."""
    from robustft.backends.cuda import nearest as cuda
    from robustft.kernels import nearest as triton

    reached = []

    def watched(search):
        def call(*given, **options):
            reached.clear()
            found = search(*given, **options)
            assert reached
            return found

        return call

    for kernels in (cuda._Kernels, triton._Triton):
        screen = kernels.screen
        monkeypatch.setattr(kernels, "screen", lambda *x, f=screen: (f(*x), reached.append(True)))
    for search in ("knn", "kth_distance"):
        monkeypatch.setitem(globals(), search, watched(globals()[search]))


def _clustered(rows, dim, card, seed=0):
    """Unit rows about a common mean, some of them twice."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(dim, generator=generator) + 0.7 * torch.randn(
        50, dim, generator=generator
    )
    which = torch.randint(50, (rows,), generator=generator)
    x = normalize(centres[which] + 0.5 * torch.randn(rows, dim, generator=generator), dim=1)
    x[rows // 2 : rows // 2 + rows // 20] = x[: rows // 20]
    return x.to(card)


def _truth(queries, rows, k):
    """Sorted squared distances in float64, from differences."""
    q, v = queries.double(), rows.double()
    near = torch.cdist(q, v, compute_mode="donot_use_mm_for_euclid_dist")
    return near.square().sort(1).values[:, :k]


@pytest.fixture
def sizes(card):
    """(Q, N, D, k): tiny in a rehearsal."""
    if card == "cpu":
        return [(3, 700, 17, 9)]
    return [
        (1, 100_000, 512, 100), (64, 20_011, 512, 1), (129, 20_011, 507, 350),
        (33, 70_001, 768, 2048), (257, 9001, 31, 65),
    ]  # fmt: skip


def test_equals_float64(backend, sizes, card):
    for count, n, dim, k in sizes:
        rows, queries = _clustered(n, dim, card), _clustered(count, dim, card, seed=1)
        queries[0] = rows[-1]
        truth = _truth(queries, rows, k)
        bank = FeatureBank(rows)
        kth = kth_distance(queries, bank, k, backend=backend)
        assert torch.equal(kth, kth_distance(queries, rows, k, backend=backend))
        torch.testing.assert_close(kth.double(), truth[:, -1], rtol=1e-5, atol=1e-12)
        values, indices = knn(queries, bank, k, backend=backend)
        assert torch.equal(values[:, -1], kth)
        torch.testing.assert_close(values.double(), truth, rtol=1e-5, atol=1e-12)
        assert (values.diff(dim=1) >= 0).all()
        for i in range(0, count, 50):
            own = (queries[i].double() - rows[indices[i]].double()).square().sum(1)
            torch.testing.assert_close(own, values[i].double(), rtol=1e-5, atol=1e-12)
            assert len(indices[i].unique()) == k


def test_batches_of_queries_and_repeats_change_no_bit(backend, sizes, card):
    count, n, dim, k = sizes[-1]
    rows, queries = _clustered(n, dim, card), _clustered(count, dim, card, seed=1)
    bank = FeatureBank(rows)
    values, indices = knn(queries, bank, k, backend=backend)
    for _ in range(3):
        again = knn(queries, bank, k, backend=backend)
        assert torch.equal(again[0], values)
        assert torch.equal(again[1], indices)
    for step in (1, 7, 64):
        some = range(0, min(count, 3 * step), step)
        parts = [knn(queries[i : i + step], bank, k, backend=backend) for i in some]
        found = torch.cat([v for v, _ in parts])
        assert torch.equal(found, values[: len(found)])
        assert torch.equal(torch.cat([i for _, i in parts]), indices[: len(found)])


def test_duplicates_beyond_any_list(backend, card):
    n = 700 if card == "cpu" else 50_000
    rows = torch.randn(3, 64, device=card)[torch.arange(n, device=card) % 3]
    queries = torch.cat([torch.randn(5, 64, device=card), rows[:2]])
    values, indices = knn(queries, rows, 20, backend=backend)
    truth = _truth(queries, rows, 20)
    torch.testing.assert_close(values.double(), truth, rtol=1e-5, atol=1e-12)
    # Equal distances come in the order of the rows.
    assert (indices.diff(dim=1)[values.diff(dim=1) == 0] > 0).all()


def test_other_queries_and_rows_compile_nothing(real_card):
    from triton.runtime.jit import JITFunction

    from robustft.kernels import nearest

    def compiled():
        kernels = [x for x in vars(nearest).values() if isinstance(x, JITFunction)]
        assert kernels
        return sum(len(caches[0]) for x in kernels for caches in x.device_caches.values())

    def search(count, n):
        rows = torch.randn(n, 64, device=real_card)
        return kth_distance(torch.randn(count, 64, device=real_card), rows, 10, backend="triton")

    search(100, 20_001)
    search(112, 20_016)
    before = compiled()
    search(333, 20_113)
    search(16, 20_480)
    assert compiled() == before


def test_a_bank_of_the_host_serves_queries_of_the_card(backend, sizes, real_card):
    count, n, dim, k = sizes[2]
    rows, queries = _clustered(n, dim, real_card), _clustered(count, dim, real_card, seed=1)
    want, order = knn(queries, FeatureBank(rows), k, backend=backend)
    bank = FeatureBank(rows.cpu())
    values, indices = knn(queries, bank, k, backend=backend)
    assert values.device == queries.device
    assert torch.equal(values, want)
    assert torch.equal(indices, order)
    assert torch.equal(kth_distance(queries, bank, k, backend=backend), want[:, -1])
