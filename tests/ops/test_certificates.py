"""A search accepts its answer only within what its screening covered, not somewhat beyond."""

import pytest
import torch

from robustft import backends
from robustft.backends.reference import nearest as reference
from robustft.backends.search import interface, packing
from robustft.ops import knn


def _kinds():
    if backends.emulating():
        return [pytest.param("cuda", marks=pytest.mark.emulator)]
    return ["triton"] if backends.interpreting() else []


@pytest.fixture(params=_kinds())
def search_kernels(request):
    if request.param == "cuda":
        from robustft.backends.cuda import nearest as cuda

        return cuda._STEPS
    from robustft.kernels import nearest

    return nearest._STEPS


# The k-th squared distance over the squared radius, and whether it may be believed.
SHARES = {
    0.25: True,
    1 - 8 * packing.WIDER: True,
    1.0: False,
    1 + 2.0**-20: False,
    1.1: False,
    1.5: False,
    2.25: False,
}


@pytest.mark.parametrize("radius", [1.0, 3.7e-9, 2.5e12])
def test_select_believes_nothing_beyond_the_radius(radius, search_kernels):
    count, capacity, rank = len(SHARES), 256, 100
    padded = packing.ROWS
    queries, aims = torch.zeros(6, padded), torch.zeros(3, padded)
    queries[packing.NORM] = 1
    aims[interface.RADIUS] = radius
    square = aims[interface.RADIUS, 0].double().square()
    lists = interface.Lists(
        torch.arange(capacity, dtype=torch.int32).repeat(count, 1),
        torch.empty(count, capacity),
        *torch.full((3, padded), capacity, dtype=torch.int32)[:, :count],
    )
    lists.ranks.fill_(rank)
    order = torch.randperm(capacity, generator=torch.Generator().manual_seed(0))
    for i, share in enumerate(SHARES):
        values = share * square * torch.linspace(0.5, 1, rank)  # the rank-th is the share itself
        lists.values[i] = torch.cat([values, values[-1] * torch.linspace(1.1, 2, 156)])[order]
    kth, safe = torch.empty(count), torch.empty(count, dtype=torch.bool)
    search_kernels.select(queries, aims, lists, kth, safe)
    want = torch.tensor(list(SHARES), dtype=torch.float64) * square
    torch.testing.assert_close(kth.double(), want, rtol=1e-6, atol=0)
    assert safe.tolist() == list(SHARES.values())
    lists.counts.fill_(capacity + 1)  # a list that lost rows is never believed
    search_kernels.select(queries, aims, lists, kth, safe)
    assert not safe.any()


@pytest.mark.parametrize("apart", [0.0005, 0.01, 0.05])
def test_the_reference_believes_nothing_beyond_its_bound(apart, monkeypatch):
    """Screening that keeps the wrong rows, and says so: the bound is that of the nearest row left.

    Rows lie on a line from the query, d² = 1, 1 + apart, …; the nearest 40 are left out. The k-th
    of the rest is farther than the bound by a share of 0.02 to 2.5.
    """
    squares = 1 + apart * torch.arange(300.0)
    rows = torch.zeros(300, 4)
    rows[:, 2] = squares.sqrt()
    query, k = torch.zeros(2, 4), 10

    def screen(q, rows, mean, norms, keep):
        kept = torch.arange(40, 40 + keep).expand(len(q), -1)
        return kept, squares[:1].expand(len(q))

    monkeypatch.setattr(reference, "_screen", screen)
    distances, indices = knn(query, rows, k, backend="reference")
    assert indices.tolist() == [list(range(k))] * 2
    torch.testing.assert_close(distances, squares[:k].expand(2, -1))
