"""What nearest's CUDA kernels do with lists, emulated: radii, bounds, selection, distances."""

import math

import pytest
import torch

from robustft import backends
from robustft.backends.cuda import nearest as cuda
from robustft.backends.search import interface, packing
from robustft.backends.search.interface import RADIUS
from robustft.backends.search.packing import NORM, RESIDUAL, SCALE

from .searches import STEPS, lists_of, normal, order, packed, packed_bank, plain, small  # noqa: F401

pytestmark = [
    pytest.mark.emulator,
    pytest.mark.skipif(not backends.emulating(), reason="runs under ROBUSTFT_CUDA_EMULATOR"),
]


@pytest.mark.parametrize("cached", [0, 100, 11264])
@pytest.mark.parametrize("size", [(5, 1), (3, 257), (2, 12_000)], ids=str)
def test_radii(size, cached, monkeypatch):
    monkeypatch.setattr(cuda, "_KEYS", 4 * cached)
    b, m = size
    queries, sample = (
        packed(normal(b, 33, seed=1)),
        packed_bank(normal(m, 33, seed=2)).numbers[:, :m],
    )
    sample = sample.contiguous()
    products = normal(b, m, seed=3) * 4
    products[:, 1::3] = products[:, ::3][:, : products[:, 1::3].shape[1]]
    for line, value in ((NORM, torch.inf), (NORM, torch.nan)):
        queries.numbers[line, b - 1] = value
        for rank in sorted({1, m // 3 + 1, m}):
            got, want = torch.full((2, 3, 128), torch.nan)
            STEPS.aim(products, queries, sample, rank, 1e-5, got)
            plain.Plain().aim(products, queries, sample, rank, 1e-5, want)
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-5)
            assert got[:, b - 1 :].T.unique(dim=0).tolist() == [[0, 0, math.inf]]


def doubtful(seed, count=300, b=6):
    """Lists of products for `resolve`, as of a bank of clusters, and the numbers of both sides."""
    rows, queries = plain.clustered(count, b, 40, clusters=7, seed=seed)
    rows[::9] = rows[3]
    mean = rows.mean(0)
    q, v = packed(queries, mean), packed_bank(rows, mean)
    v.numbers[NORM, 5] = torch.inf
    v.numbers[SCALE, 5] = v.numbers[RESIDUAL, 5] = 0
    products = STEPS.plain(q.halves, b).float() @ STEPS.plain(v.halves, count).float().T
    lists = lists_of(b, count - 20)
    for i in range(b):
        asked = count if i == 0 else count // 2 + 7 * i
        some = torch.randperm(count, generator=torch.Generator().manual_seed(i))[:asked]
        lists.counts[i] = asked
        some = some[: count - 20]
        lists.rows[i, : len(some)] = some.int()
        lists.values[i, : len(some)] = products[i, some]
    lists.counts[4] = 0
    return q.numbers, v.numbers, lists


@pytest.mark.parametrize("cached", [0, 64, 5632])
@pytest.mark.parametrize("every", [False, True])
def test_resolve_keeps_what_is_doubtful(every, cached, monkeypatch):
    monkeypatch.setattr(cuda, "_KEYS", 8 * cached)
    slack = packing.slack_of(40)
    for k in (1, 17, 150, 200):
        q, v, lists = doubtful(k)
        before = [x.clone() for x in lists]
        order(k)
        STEPS.resolve(q, v, k, slack, every, lists)
        for i in range(len(lists.rows)):
            count = min(int(before[2][i]), lists.rows.shape[1])
            listed = before[0][i, :count].long()
            low, high = plain.Plain().bounds(
                before[1][i, :count], q[:, i, None], v[:, listed], slack
            )
            least, most = torch.inf, torch.inf
            if count >= k:
                least, most = low.kthvalue(k).values, high.kthvalue(k).values
            kept = lists.rows[i, : lists.kept[i]].tolist()
            assert len(set(kept)) == len(kept)
            assert set(kept) <= set(listed.tolist())
            mask = torch.tensor([r in set(kept) for r in listed.tolist()], dtype=torch.bool)
            # √ and FMA differ in the last places.
            wide = 1 + 1e-5
            certain, possible = low * wide < most, low <= most * wide
            if not every:
                certain, possible = (
                    certain & (high > least * wide),
                    possible & (high * wide >= least),
                )
            assert mask[certain].all()
            assert not mask[~possible].any()
            nearer = 0 if every else int((~mask & (high < most)).sum())
            if count >= k:
                assert lists.ranks[i] == k - nearer
                assert 1 <= lists.ranks[i] <= lists.kept[i]
            else:
                assert lists.ranks[i] > lists.kept[i]


def of_bits(bits):
    return torch.as_tensor(bits).int().view(torch.float32)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_select_is_that_of_a_sort(seed):
    order(seed)
    generator = torch.Generator().manual_seed(seed)
    capacity = 1500
    kinds = [
        torch.rand(capacity, generator=generator),
        torch.randint(0, 5, (capacity,), generator=generator).float(),
        torch.randint(0, 2**31 - 2**23 + 1, (capacity,), generator=generator)
        .int()
        .view(torch.float),
        torch.full((capacity,), 3.5),
        torch.zeros(capacity),
        of_bits([0, 1, 2, 255, 256, 2**16, 2**23 - 1, 2**23, 2**31 - 2**23 - 1, 2**31 - 2**23]),
    ]
    for values in kinds:
        n = len(values)
        values = values[torch.randperm(n, generator=generator)]
        kept = [1, 2, 33, 256, 257, n]
        for rank_of in (lambda n: 1, lambda n: n, lambda n: n // 2 + 1, lambda n: n + 1):
            b = len(kept)
            kept = [min(x, n) for x in kept]
            lists = interface.Lists(
                torch.zeros(b, n, dtype=torch.int32),
                values.repeat(b, 1).contiguous(),
                torch.tensor([n] * (b - 1) + [n + 1], dtype=torch.int32),
                torch.tensor(kept, dtype=torch.int32),
                torch.tensor([rank_of(x) for x in kept], dtype=torch.int32),
            )
            numbers, aims = torch.zeros(5, 128), torch.zeros(3, 128)
            numbers[NORM, 1] = torch.nan
            aims[RADIUS] = 1.5
            kth, safe = torch.full((b,), torch.nan), torch.zeros(b, dtype=torch.bool)
            STEPS.select(numbers, aims, lists, kth, safe)
            for i, x in enumerate(kept):
                ordered, rank = values[:x].sort().values, rank_of(x)
                want = ordered[rank - 1] if rank <= x else torch.tensor(torch.inf)
                if i == 1:
                    assert kth[i].isnan()
                    assert safe[i]
                else:
                    assert kth[i : i + 1].view(torch.int32) == want.view(1).view(torch.int32)
                    certain = want <= 1.5**2 * (1 - 2.0**-18) and i != b - 1
                    assert bool(safe[i]) == bool(certain)


@pytest.mark.parametrize("dim", [1, 3, 4, 127, 512, 1101])
def test_exact_distances_of_any_alignment(dim):
    queries, rows = normal(5, dim, seed=1), normal(90, dim, seed=2)
    capacity = 40
    lists = lists_of(5, capacity)
    lists.kept.copy_(torch.tensor([0, 1, 40, 17, 9], dtype=torch.int32))
    for i in range(5):
        some = torch.randperm(90, generator=torch.Generator().manual_seed(i))[:capacity]
        lists.rows[i] = some.int() + 50
    wide = torch.full((90, dim + 7), torch.nan)
    found = []
    for shift in (0, 1, 4):
        wide[:, shift : shift + dim] = rows
        lists.values.fill_(-1)
        STEPS.exact(queries, wide[10:30, shift : shift + dim], 60, lists)
        half = lists.values.clone()
        STEPS.exact(queries, wide[30:, shift : shift + dim], 80, lists)
        for i in range(5):
            listed, kept = lists.rows[i].long() - 50, int(lists.kept[i])
            inside = (listed >= 10) & (torch.arange(capacity) < kept)
            want = (queries[i].double() - rows[listed].double()).square().sum(1).float()
            torch.testing.assert_close(lists.values[i, inside], want[inside], rtol=1e-7, atol=0)
            assert (lists.values[i, ~inside] == -1).all()
            assert (half[i, inside & (listed >= 30)] == -1).all()
        found.append(lists.values.clone())
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
