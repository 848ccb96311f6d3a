"""Packing and screening of nearest's CUDA kernels, emulated: cards of 227, 163 and 99 KB."""

import pytest
import torch

from robustft import backends
from robustft.backends.cuda import nearest as cuda
from robustft.backends.cuda import ring
from robustft.backends.search import interface, packing
from robustft.backends.search.interface import FLOOR, RADIUS, REACH
from robustft.backends.search.packing import LEVEL, NEAR, NORM, RESIDUAL, ROWS, SCALE, SQUARE

from .searches import (  # noqa: F401
    STEPS,
    both_kernels,
    emulated_card,
    every_card,
    lists_of,
    normal,
    order,
    packed,
    packed_bank,
    small,
)

pytestmark = [
    pytest.mark.emulator,
    pytest.mark.skipif(not backends.emulating(), reason="runs under ROBUSTFT_CUDA_EMULATOR"),
]


@pytest.mark.parametrize("dim", [1, 8, 63, 64, 65, 130])
def test_packing_is_that_of_the_plain_step(dim):
    rows = normal(259, dim, seed=1) * 10.0 ** torch.arange(-29, 230)[:, None].remainder(50)
    rows[7, dim // 2], rows[9, 0], rows[11] = torch.nan, -torch.inf, 0
    rows[13] *= 1e-30 / rows[13].norm()
    wide = torch.zeros(259, dim + 5)
    wide[:, 2 : dim + 2] = rows  # rows that start anywhere
    mean = normal(dim, seed=2)
    some = torch.arange(5, 259, 11)
    for scaled in (False, True):
        got, want = (packing.padded(259, dim, rows.device) for _ in range(2))
        for into in (got, want):
            into.numbers[SCALE] = 2.0 ** (torch.arange(384) // 128 * 3 + 55)
        STEPS.round_rows(wide[:, 2 : dim + 2], mean, got, scaled)
        interface.SearchKernels.round_rows(STEPS, rows, mean, want, scaled)
        assert torch.equal(STEPS.plain(got.halves, 384), want.halves)
        assert torch.equal(STEPS.plain(got.halves, len(some), some), want.halves[some])
        assert torch.equal(cuda._plain_on_host(got.halves, some), want.halves[some])
        # Sums in another order: a unit in the last place.
        got, want = got.numbers[: SQUARE + 1], want.numbers[: SQUARE + 1]
        torch.testing.assert_close(got, want, rtol=2**-23, atol=0, equal_nan=True)


def test_tiles_of_halves_hold_swizzled_lines():
    rows = torch.arange(1.0, 130 * 96 + 1).remainder(2039).reshape(130, 96)
    halves = packed(rows).halves.view(2, 2, 128, 8, 8)
    scale = packed(rows).numbers[SCALE, :130, None]
    want = (rows / scale).half()
    for row, column in ((0, 0), (1, 9), (6, 63), (127, 64), (129, 95), (77, 40)):
        chunk = column % 64 // 8 ^ row % 8
        assert halves[row // 128, column // 64, row % 128, chunk, column % 8] == want[row, column]


def screened(queries, rows, share, capacity, first_row=1000, skip=0):
    """Lists of rows skip…; in float64 by how much each passes, what that may err by, and P."""
    q, v = packed(queries), packed_bank(rows)
    slack = packing.slack_of(queries.shape[1])
    count, n = len(queries), len(rows) - skip
    chunk = packing.Packed(v.halves[skip:], v.numbers[:, skip:])
    exact = torch.cdist(queries.double(), rows[skip:].double())
    aims = torch.zeros(3, len(q.halves))
    aims[FLOOR] = torch.inf
    radius = exact.quantile(torch.tensor(share, dtype=torch.float64), dim=1).float()
    t = radius * (1 + packing.WIDER) + q.numbers[RESIDUAL, :count]
    aims[RADIUS, :count], aims[REACH, :count] = radius, 2 * t
    norm = q.numbers[NORM, :count]
    wide = (1 + packing.SHARE) * t.square() * (1 + slack)
    aims[FLOOR, :count] = norm * (1 - slack) - wide - packing.TINY
    lists = lists_of(count, capacity)
    STEPS.screen(q, aims, chunk, first_row, lists)

    def halves(x, of):
        return STEPS.plain(x.halves, of).double()

    products = halves(q, count) @ halves(v, len(rows))[skip:].T
    a, b = q.numbers[:, :count].double(), v.numbers[:, skip : len(rows)].double()
    left = 2 * a[SCALE, :, None] * b[SCALE] * products - b[NEAR]
    over = left - aims[FLOOR, :count, None].double() + aims[REACH, :count, None] * b[LEVEL]
    allowed = slack * (a[NORM, :, None] + b[NORM] + t.double()[:, None].square())
    assert over.shape == (count, n)
    return lists, over, allowed, products


SHAPES = [(1, 129, 8), (127, 300, 127), (129, 385, 64), (70, 700, 200), (200, 131, 507)]
SHAPES += [(66, 260, 512), (65, 257, 640), (64, 129, 768), (130, 140, 800), (3, 400, 1100)]


@every_card
@pytest.mark.parametrize("size", SHAPES, ids=str)
def test_lists_hold_what_they_must(size, card):
    q, n, d = size
    skip = ROWS if n > 256 else 0
    queries = normal(q, d, seed=1)
    rows = normal(n, d, seed=2) * (0.8 + torch.arange(n) % 7 / 15)[:, None]
    order(q)  # some shuffled, one reversed
    lists, over, allowed, products = screened(queries, rows, 0.05, n, skip=skip)
    for i in range(q):
        count = int(lists.counts[i])
        assert (lists.rows[i, count:] == -7).all()
        assert lists.values[i, count:].isnan().all()
        listed = lists.rows[i, :count].long() - 1000
        assert listed.unique().numel() == count
        mask = torch.zeros(n - skip, dtype=torch.bool)
        mask[listed] = True
        assert mask[over[i] > allowed[i]].all()
        assert (over[i, mask] >= -allowed[i, mask]).all()
        error = (lists.values[i, :count].double() - products[i, listed]).abs()
        assert (error <= 1e-6 * d**0.5 * products.abs().max()).all()
    assert q < lists.counts.sum() < q * n / 4


@pytest.mark.parametrize("card", ["sm_90a"], indirect=True)
@pytest.mark.parametrize("size", [(70, 300, 64), (300, 131, 130), (257, 260, 600)], ids=str)
def test_a_spare_block_lists_nothing(size, card, monkeypatch):
    """A cluster's second block that has no queries, beside each alone."""
    found = []
    for cluster in (1, 2):
        monkeypatch.setattr(ring, "cluster_of", lambda blocks, cluster=cluster: cluster)
        cuda._shape.cache_clear()
        q, n, d = size
        lists, *_ = screened(normal(q, d, seed=1), normal(n, d, seed=2), 0.1, n)
        found.append((lists.counts, lists.rows.sort(1).values, lists.values.sort(1).values))
    cuda._shape.cache_clear()
    assert found[0][0].sum() > q
    for one, two in zip(*found, strict=True):
        assert torch.equal(one.nan_to_num(), two.nan_to_num())


@both_kernels
def test_a_full_list_counts_on(card):
    queries, rows = normal(130, 40, seed=1), normal(777, 40, seed=2)
    whole = screened(queries, rows, 0.2, 777)[0]
    part = screened(queries, rows, 0.2, 157)[0]
    assert torch.equal(part.counts, whole.counts)
    assert (part.counts > 157).any()
    assert (part.counts < 157).any()
    for i in range(130):
        of = set(whole.rows[i, : whole.counts[i]].tolist())
        got = part.rows[i, : min(int(part.counts[i]), 157)].tolist()
        assert len(set(got)) == len(got)
        assert set(got) <= of


@both_kernels
def test_a_test_that_is_nan_keeps_its_row(card):
    queries, rows = packed(normal(100, 70, seed=1)), packed_bank(normal(256, 70, seed=2))
    rows.numbers[NEAR, 131] = torch.nan
    aims = torch.zeros(3, 128)
    aims[FLOOR] = 1e30
    aims[FLOOR, 77] = torch.nan
    # The padding's test is NaN, too, and beyond the lists.
    room = lists_of(128, 256)
    lists = interface.Lists(*(part[:100] for part in room))
    STEPS.screen(queries, aims, rows, 0, lists)
    assert lists.counts.tolist() == [256 if i == 77 else 1 for i in range(100)]
    assert all(lists.rows[i, 0] == 131 for i in range(100) if i != 77)
    assert lists.rows[77].sort().values.tolist() == list(range(256))
    assert (room.rows[100:] == -7).all()
    assert not room.counts[100:].any()


def test_a_chunk_of_one_tile_for_many_blocks(monkeypatch):
    """More parts of the bank than tiles, and ranges that are empty."""
    monkeypatch.setattr(cuda, "_splits", lambda *_: 5)
    for wgmma in (False, True):
        monkeypatch.setattr(cuda, "USE_WGMMA", wgmma)
        lists, over, *_ = screened(normal(70, 9, seed=1), normal(100, 9, seed=2), 0.5, 100)
        torch.testing.assert_close(lists.counts.sum(), (over > 0).sum(), rtol=0.02, atol=0)
