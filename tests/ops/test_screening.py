"""The host side of the GPU search, with every step in plain torch: bounds, plan, chunks, fallback.

In Triton's interpreter, the same with Triton's steps.
"""

import functools
import os

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from robustft import backends
from robustft.backends.reference import nearest as reference
from robustft.backends.search import banks, interface, packing, plans, screening
from robustft.backends.search.interface import FLOOR, RADIUS, REACH
from robustft.backends.search.packing import LEVEL, NEAR, NORM, RESIDUAL, SCALE, SQUARE

# As tests/conftest.py has them; other tests load this file by its path.
REHEARSING = os.environ.get("ROBUSTFT_REHEARSE") == "1"
CARD = "cpu" if REHEARSING else "cuda"


class Plain(interface.SearchKernels):
    """The steps as their docstrings have them; `nudge` adds to products what rounding may."""

    def __init__(self, nudge=None):
        self.nudge = nudge or (lambda products, queries, rows: products)

    def bounds(self, products, q, v, slack):
        norms = q[NORM] + v[NORM]
        s = norms - 2 * products * q[SCALE] * v[SCALE]
        e, rho = slack * norms + packing.TINY, q[RESIDUAL] + v[RESIDUAL]
        low = (s - e).where(s - e > 0, 0).sqrt() * (1 - packing.WIDER)
        low = (low - rho * (1 + packing.WIDER)).clamp_min(0)
        high = ((s + e).clamp_min(0).sqrt() + rho) * (1 + packing.WIDER)
        return low, high.where(v[NORM].isfinite(), torch.inf)

    def aim(self, products, queries, sample, rank, slack, aims):
        q = queries.numbers[:, : len(products), None]
        radius = self.bounds(products, q, sample[:, None], slack)[1].kthvalue(rank).values
        t = radius * (1 + packing.WIDER) + q[RESIDUAL, :, 0]
        wide = (1 + packing.SHARE) * t.square()
        floor = q[NORM, :, 0] * (1 - slack) - wide * (1 + slack) - packing.TINY
        on = radius.isfinite() & q[NORM, :, 0].isfinite()
        aims[:2], aims[FLOOR] = 0, torch.inf
        for line, values, off in (
            (RADIUS, radius, 0),
            (REACH, 2 * t, 0),
            (FLOOR, floor, torch.inf),
        ):
            aims[line, : len(products)] = values.where(on, off)

    def screen(self, queries, aims, chunk, first_row, lists):
        products = queries.halves.float() @ chunk.halves.float().T
        products = self.nudge(products, queries, chunk)
        close = products * ((2 * queries.numbers[SCALE])[:, None] * chunk.numbers[SCALE])
        close -= chunk.numbers[NEAR]
        keep = ~(close < aims[FLOOR][:, None] - aims[REACH][:, None] * chunk.numbers[LEVEL])
        assert not keep[len(lists.rows) :].any()
        for i in range(len(lists.rows)):
            found = keep[i].nonzero()[:, 0]
            first = int(lists.counts[i])
            room = found[: max(0, lists.rows.shape[1] - first)]
            lists.rows[i, first : first + len(room)] = (room + first_row).int()
            lists.values[i, first : first + len(room)] = products[i, room]
            lists.counts[i] += len(found)

    def resolve(self, queries, bank, k, slack, every, lists):
        for i, row in enumerate(lists.rows):
            count = min(int(lists.counts[i]), len(row))
            listed = row[:count].clone()
            v = bank[:, listed.long()]
            low, high = self.bounds(lists.values[i, :count], queries[:, i, None], v, slack)
            enough = count >= k
            at_least = low.kthvalue(k).values if enough else torch.inf
            at_most = high.kthvalue(k).values if enough else torch.inf
            keep = low <= at_most
            below = 0 if every else int((high < at_least).sum())
            if not every:
                keep &= high >= at_least
            kept = listed[keep]
            row[: len(kept)] = kept
            lists.kept[i], lists.ranks[i] = len(kept), k - below

    def exact(self, queries, rows, first_row, lists):
        for i, q in enumerate(queries):
            listed = lists.rows[i, : lists.kept[i]].long() - first_row
            mine = (listed >= 0) & (listed < len(rows))
            distances = (q.double() - rows[listed[mine]].double()).square().sum(1).float()
            lists.values[i, : lists.kept[i]][mine] = distances

    def select(self, queries, aims, lists, kth, safe):
        for i in range(len(kth)):
            values = lists.values[i, : lists.kept[i]]
            rank = int(lists.ranks[i])
            kth[i] = values.kthvalue(rank).values if rank <= len(values) else torch.inf
        certain = kth <= aims[RADIUS, : len(kth)].square() * (1 - 4 * packing.WIDER)
        certain &= lists.counts <= lists.rows.shape[1]
        missing = queries[NORM, : len(kth)].isnan()
        safe.copy_(certain | missing)
        kth.masked_fill_(missing, torch.nan)


CARDS = [pytest.param(f"{name} on a card", marks=pytest.mark.gpu) for name in ("triton", "cuda")]


def _kinds():
    if backends.emulating():
        return [pytest.param("cuda", marks=pytest.mark.emulator)]
    if backends.interpreting():
        return CARDS[:1] if REHEARSING else ["triton"]
    return ["plain", *CARDS]


@pytest.fixture(params=_kinds())
def steps(request, monkeypatch):
    kind, *place = request.param.split(" on ")
    if place:
        state = backends.status(kind)
        if not state.runs:
            pytest.skip(state.reason)
        for module, name in ((banks, "pack"), (screening, "kth_distance"), (screening, "knn")):
            monkeypatch.setattr(module, name, _on_a_card(getattr(module, name)))
    if kind == "plain":
        return Plain()
    if kind == "cuda":
        from robustft.backends.cuda import nearest as cuda

        return cuda._Kernels()
    from robustft.kernels import nearest

    return nearest._Triton()


def _on_a_card(function, inside=[]):  # noqa: B006 - what these functions call is there already
    """The function with tensors of the card, and its results back."""

    def call(*given):
        if inside:
            return function(*given)
        inside.append(True)
        try:
            given = tree_map_only(torch.device, lambda _: torch.device(CARD), given)
            found = function(*tree_map_only(torch.Tensor, lambda x: x.to(CARD), given))
        finally:
            inside.clear()
        return tree_map_only(torch.Tensor, lambda x: x.cpu(), found)

    return call


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Searches of a thousand rows are screened, too."""
    monkeypatch.setattr(plans, "LEAST_SAMPLE", 64)
    plans.plans.cache_clear()
    yield
    plans.plans.cache_clear()


@pytest.fixture
def no_fallback(monkeypatch):
    def refuse(*_):
        raise AssertionError("the reference was called")

    monkeypatch.setattr(screening, "_by_reference", refuse)


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).float()


def clustered(rows, queries, dim, clusters=40, noise=0.5, seed=0):
    """Unit rows about centres that share a mean, and unit queries about the same centres."""
    centres = 1 + 2 * F.normalize(normal(clusters, dim, seed=seed)) * dim**0.5

    def draw(count, seed):
        return F.normalize(
            centres[torch.arange(count) * clusters // count] + noise * normal(count, dim, seed=seed)
        )

    return draw(rows, seed + 1), draw(queries, seed + 2)


def truth(queries, rows, k):
    distances = torch.stack([(q - rows.double()).square().sum(1) for q in queries.double()])
    distances, indices = distances.float().sort(dim=1, stable=True)
    return distances[:, :k], indices[:, :k]


def check(queries, rows, k, steps, packed=None):
    packed = banks.pack(rows, steps, rows.device) if packed is None else packed
    want, order = truth(queries, rows, k)
    kth = screening.kth_distance(queries, rows, packed, k, True, steps)
    torch.testing.assert_close(kth, want[:, -1], rtol=2e-7, atol=0, equal_nan=True)
    distances, indices = screening.knn(queries, rows, packed, k, True, steps)
    torch.testing.assert_close(distances, want, rtol=2e-7, atol=0, equal_nan=True)
    assert torch.equal(indices, order)


def hard():
    n, dim = 1031, 17
    rows, queries = clustered(n, 9, dim)
    yield "clustered", rows, queries
    yield "far mean", rows + 1000, queries + 1000
    yield "small", rows * 1e-9, queries * 1e-9
    yield "tiny", rows * 1e-22, queries * 1e-22
    yield "huge", rows * 1e18, queries * 1e18
    yield "too huge", rows * 1e20, queries * 1e20
    yield "norms of all sizes", rows * 10.0 ** torch.arange(n).remainder(31)[:, None], queries * 1e9
    yield "some huge rows", rows * torch.where(torch.arange(n) % 20 < 1, 1e25, 1)[:, None], queries
    yield "two rows", rows[torch.arange(n) % 2], torch.cat([queries, rows[:2]])
    yield "all equal", rows[:1].expand(n, -1), queries
    yield "near-duplicates", rows[:1] + 1e-6 * rows, rows[:9]
    yield "zero rows", torch.cat([rows, torch.zeros(300, dim)]), torch.cat([queries, 0 * queries])
    yield "a huge query", rows, torch.cat([queries, queries[:2] * 1e19, queries[:2] * 1e25])


HARD = {name: (rows, queries) for name, rows, queries in hard()}


@pytest.mark.parametrize("k", [7] if backends.interpreting() else [1, 7, 32])
@pytest.mark.parametrize("name", HARD)
def test_hard_banks(name, k, steps):
    rows, queries = HARD[name]
    check(queries, rows, k, steps)


@pytest.mark.parametrize(("rows", "dim"), [(513, 1), (1153, 64), (640, 65), (2003, 127)])
def test_every_width(rows, dim, steps):
    check(normal(7, dim, seed=1), normal(rows, dim, seed=2), 5, steps)


def _worst(sign):
    """Products as far off as the docstring allows for tensor cores."""

    def nudge(products, queries, rows):
        # Zeros lose nothing: columns with entries count.
        dim = int((rows.halves != 0).any(0).sum())
        lengths = queries.halves.double().norm(dim=1)[:, None] * rows.halves.double().norm(dim=1)
        allowed = 11 / 8 * (dim + 8) * 2.0**-23 * lengths
        if sign:
            return (products.double() + sign * allowed).float()
        return (products.double() + allowed * (2 * torch.rand_like(allowed) - 1)).float()

    return nudge


@pytest.mark.parametrize("sign", [-1] if backends.interpreting() else [-1, 0, 1])
@pytest.mark.parametrize("name", ["clustered", "far mean", "norms of all sizes", "near-duplicates"])
def test_products_that_err_as_much_as_they_may(name, sign, steps, monkeypatch):
    worst = Plain(_worst(sign))

    def screen(queries, aims, chunk, first_row, lists):
        queries, chunk = (
            part._replace(halves=steps.plain(part.halves, len(part.halves)))
            for part in (queries, chunk)
        )
        worst.screen(queries, aims, chunk, first_row, lists)

    monkeypatch.setattr(steps, "screen", screen)
    rows, queries = HARD[name]
    check(queries, rows, 13, steps)


def _bounds(rows, queries, sign):
    """Bounds of all distances, and the distances in float64."""
    steps = Plain(_worst(sign))
    mean, halves, numbers = banks.pack(rows, steps, rows.device)
    packed = packing.padded(*queries.shape, queries.device)
    steps.round_rows(queries, mean, packed)
    products = packed.halves.float() @ halves.float().T
    products = steps.nudge(products, packed, packing.Packed(halves, numbers))
    slack = packing.slack_of(rows.shape[1])
    low, high = steps.bounds(products, packed.numbers[:, :, None], numbers[:, None], slack)
    part = slice(len(queries)), slice(len(rows))
    exact = torch.stack([(q - rows.double()).square().sum(1).sqrt() for q in queries.double()])
    return low[part], high[part], exact


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    dim=st.sampled_from([1, 3, 64, 97]),
    scale=st.floats(-17, 18),
    spread=st.floats(-7, 1),
    shift=st.sampled_from([0.0, 1.0, 1000.0]),
    grid=st.booleans(),
    sign=st.sampled_from([-1, 0, 1]),
)
def test_bounds_hold(seed, dim, scale, spread, shift, grid, sign):
    rows = shift + 10.0**spread * normal(40, dim, seed=seed)
    if grid:  # halfway between two float16 numbers: rounding errs by as much as it can
        rows = (rows * 1024).round() / 1024 * (1 + 2.0**-11)
    rows *= 10.0**scale
    queries = torch.cat([rows[:3] + rows[3:6] * 1e-5, rows.flip(0)[:3]])
    low, high, exact = _bounds(rows, queries, sign)
    assert (low <= exact).all()
    assert (exact <= high).all()


def test_bounds_are_tight_enough_to_be_of_use():
    rows, queries = clustered(1031, 9, 512)
    low, high, exact = _bounds(rows, queries, 0)
    apart = exact > 0.5
    assert apart.float().mean() > 0.9
    assert ((high - low) / exact)[apart].max() < 3e-3


def test_packing_says_what_it_holds(steps, request):
    place = CARD if "on a card" in request.node.callspec.params["steps"] else "cpu"
    rows = torch.cat([normal(131, 70, seed=3) * 3e-3, torch.zeros(1, 70), normal(1, 70) * 1e30])
    rows[5, 3] = torch.nan
    mean = normal(70, seed=4) * 1e-3
    packed = packing.padded(*rows.shape, torch.device(place))
    packed.halves.fill_(9)
    packed.numbers.fill_(torch.nan)
    steps.round_rows(rows.to(place), mean.to(place), packed)
    halves = steps.plain(packed.halves, 256).cpu()
    packed = packing.Packed(*(part.cpu() for part in packed))
    n, dim = rows.shape
    assert packed.halves.shape == (256, 128)
    assert packed.numbers.shape == (6, 256)
    assert not halves[n:].any()
    assert not halves[:, dim:].any()
    assert not packed.numbers[:4, n:].any()
    scale, residual, norm, square, *_ = packed.numbers[:, :n].double()
    good = torch.ones(n, dtype=torch.bool)
    good[[5, n - 1]] = False
    centred, half = (rows.double() - mean.double())[good], halves[:n, :dim].double()[good]
    rounded = half * scale[good, None]
    assert (torch.frexp(scale[good]).mantissa == 0.5).all()
    assert half.abs().amax(1).min() > 0.49
    assert half.abs().max() <= 1
    assert ((centred - rounded).norm(dim=1) <= residual[good]).all()
    assert ((centred - rounded).norm(dim=1) * (1 + 2**-19) + 2**-119 > residual[good]).all()
    torch.testing.assert_close(norm[good], rounded.square().sum(1), rtol=1e-7, atol=0)
    torch.testing.assert_close(square[good], centred.square().sum(1), rtol=1e-7, atol=0)
    assert not halves[:n][~good].any()
    assert packed.numbers[:3, [5, n - 1]].nan_to_num(7, 8, 9).T.tolist() == [[0, 0, 7], [0, 0, 8]]


def _uneven():
    """Tiles of which each has a row, or most rows, far larger or smaller than the others."""
    rows = normal(500, 70, seed=3)
    rows[40] *= 300
    rows[140], rows[150:153] = rows[140] * 1e6, 0
    rows[256:384] *= 10.0 ** torch.arange(128).remainder(17)[:, None]
    rows[384:470] *= 1e-7
    return rows


def test_the_rows_of_a_tile_share_a_scale_and_a_level(steps, request):
    place = CARD if "on a card" in request.node.callspec.params["steps"] else "cpu"
    rows = torch.cat([_uneven(), 1e20 * normal(1, 70), torch.full((1, 70), 1e18)])
    rows[5, 3] = torch.nan
    n, dim = rows.shape
    bad = torch.zeros(n, dtype=torch.bool)
    bad[[5, n - 2, n - 1]] = True
    packed = banks.pack_tiles(rows.to(place), torch.zeros(dim, device=place), steps)
    halves = steps.plain(packed.halves, 512).double().cpu()
    scale, residual, norm, _, near, level = packed.numbers.double().cpu()
    for one in (scale, level):
        assert (one.view(-1, 128) == one.view(-1, 128)[:, :1]).all()
    assert (torch.frexp(scale).mantissa == 0.5).all()
    largest = halves.abs().view(4, -1).amax(1)
    assert (largest[:3] > 2**14 - 1).all()
    assert (largest <= 2**15).all()
    apart = (rows.double() - (halves * scale[:, None])[:n, :dim]).norm(dim=1)
    assert (apart <= residual[:n])[~bad].all()
    assert torch.equal(level[::128], residual.view(-1, 128).sort(1).values[:, 63])
    # (t + ρ)² is within what the test allows, whatever t is.
    for t in (0, 1e-9, 1e-3, 1, 1e3, 1e9):
        allowed = (1 + packing.SHARE) * t**2 + 2 * t * level[:n] + norm[:n]
        assert ((t + residual[:n]).square() < allowed - near[:n])[~bad].all()
    assert not halves[:n][bad].any()
    assert near[:n][bad].tolist() == [packing.LOWEST] * 3
    assert (near[n:] == torch.inf).all()


def _listed(queries, rows, radius, steps, place):
    """Which rows [b, n] a kernel lists for radii [b]."""
    (count, dim), n = queries.shape, len(rows)
    mean = torch.zeros(dim, device=place)
    bank = banks.pack_tiles(rows.to(place), mean, steps)
    asked = packing.padded(count, dim, torch.device(place))
    steps.round_rows(queries.to(place), mean, asked)
    slack = packing.slack_of(dim)
    t = radius.to(place) * (1 + packing.WIDER) + asked.numbers[RESIDUAL, :count]
    aims = torch.zeros((3, len(asked.halves)), device=place)
    aims[FLOOR] = torch.inf
    aims[REACH, :count] = 2 * t
    wide = (1 + packing.SHARE) * t.square() * (1 + slack)
    aims[FLOOR, :count] = asked.numbers[NORM, :count] * (1 - slack) - wide - packing.TINY
    lists = interface.Lists(
        torch.full((count, len(bank.halves)), -1, dtype=torch.int32, device=place),
        torch.zeros((count, len(bank.halves)), device=place),
        *torch.zeros((3, count), dtype=torch.int32, device=place),
    )
    steps.screen(asked, aims, bank, 0, lists)
    found = torch.zeros((count, n + 1), dtype=torch.bool)
    found.scatter_(1, (lists.rows.cpu().long() + 1), True)
    return found[:, 1:]


def test_no_row_within_the_radius_is_left_out(steps, request):
    """In tiles with rows of all sizes, for radii that are rows' own distances."""
    place = CARD if "on a card" in request.node.callspec.params["steps"] else "cpu"
    rows = _uneven()
    queries = torch.cat([rows[:30:3], rows[256:384:11] * 1.0003, rows[400:410], rows[149:151]])
    exact = torch.stack([(q - rows.double()).norm(dim=1) for q in queries.double()])
    for rank in (2, 40, 300):
        radius = exact.kthvalue(rank, dim=1).values
        kernels = [Plain(_worst(sign)) for sign in (-1, 1)] if type(steps) is Plain else [steps]
        for one in kernels:
            found = _listed(queries, rows, radius.float(), one, place)
            assert found[exact <= radius[:, None]].all()


def test_a_large_row_in_each_tile_lengthens_no_list(steps, request):
    place = CARD if "on a card" in request.node.callspec.params["steps"] else "cpu"
    rows, queries = clustered(1537, 40, 64)
    rows, queries = rows - rows.mean(0), queries - rows.mean(0)
    radius = torch.cdist(queries, rows).kthvalue(60, dim=1).values
    usual = _listed(queries, rows, radius, steps, place)
    assert 60 < usual.sum(1).float().mean() < 66
    rows[7::128] *= 1000
    left = _listed(queries, rows, radius, steps, place)
    assert not left[:, 7::128].any()
    left[:, 7::128] = usual[:, 7::128]
    assert left.sum() < 1.02 * usual.sum()


def test_only_what_is_doubtful_is_compared_exactly(steps, no_fallback, monkeypatch):
    rows, queries = clustered(4003 if backends.interpreting() else 12_007, 20, 128)
    listed, exactly = [], []
    exact = steps.exact

    def counted(q, bank, first_row, lists):
        listed.append(int(lists.counts.sum()) / len(q))
        exactly.append(int(lists.kept.sum()) / len(q))
        exact(q, bank, first_row, lists)

    monkeypatch.setattr(steps, "exact", counted)
    packed = banks.pack(rows, steps, rows.device)
    kth = screening.kth_distance(queries, rows, packed, 100, True, steps)
    torch.testing.assert_close(kth, truth(queries, rows, 100)[0][:, -1], rtol=2e-7, atol=0)
    screening.knn(queries, rows, packed, 100, True, steps)
    assert listed[0] == listed[1] > 110
    assert 1 <= exactly[0] < 15
    assert 100 <= exactly[1] < 115


@pytest.mark.parametrize("k", [7] if backends.interpreting() else [1, 40])
@pytest.mark.parametrize(
    "name", ["clustered", *(() if backends.interpreting() else ("norms of all sizes", "two rows"))]
)
def test_chunks_change_no_bit(name, k, steps, monkeypatch):
    rows, queries = HARD[name]
    rows = rows[:, :16].T.contiguous().T  # a bank of any strides
    queries = queries[:, :16]
    packed = banks.pack(rows, steps, rows.device)
    kth = screening.kth_distance(queries, rows, packed, k, True, steps)
    distances, indices = screening.knn(queries, rows, packed, k, True, steps)
    for chunk in (300, 1024) if backends.interpreting() else (1, 300, 1024, 5000):
        monkeypatch.setattr(banks, "CHUNK", chunk)
        assert torch.equal(screening.kth_distance(queries, rows, packed, k, True, steps), kth)
        found = screening.knn(queries, rows, packed, k, True, steps)
        assert torch.equal(found[0], distances)
        assert torch.equal(found[1], indices)


def test_blocks_of_queries_change_no_bit(steps, monkeypatch):
    rows, queries = clustered(2003, 40, 19)
    packed = banks.pack(rows, steps, rows.device)
    want = screening.knn(queries, rows, packed, 9, True, steps)
    monkeypatch.setattr(plans, "WORKSPACE", 1 << 20)
    assert 20 <= _block(2003, 9, True) < 40
    assert all(map(torch.equal, screening.knn(queries, rows, packed, 9, True, steps), want))
    monkeypatch.setattr(plans, "WORKSPACE", 1 << 18)
    assert 20 <= _block(2003, 9) < 40
    kth = screening.kth_distance(queries, rows, packed, 9, True, steps)
    assert torch.equal(kth, want[0][:, -1])


def _block(rows, k, every=False):
    """Queries of a block, for a bank on the device."""
    return plans.plans(rows, k)[0].queries(1 << 40, torch.device("cpu"), False, every)


class Nothing(interface.SearchKernels):
    """Kernels take no part in what the host does between them."""

    def round_rows(self, *_):
        pass

    aim = screen = resolve = exact = round_rows

    def select(self, queries, aims, lists, kth, safe):
        kth.fill_(1)
        safe.fill_(True)


class Aligned(Nothing):
    """Kernels are compiled for addresses that divide by 16, and anew for others."""

    seen = 0

    def round_rows(self, *arguments):
        for x in arguments:
            if isinstance(x, tuple):
                self.round_rows(*x)
            elif isinstance(x, torch.Tensor):
                assert x.data_ptr() % 16 == 0
                self.seen += 1

    aim = screen = resolve = exact = round_rows

    def select(self, *arguments):
        self.round_rows(*arguments)
        super().select(*arguments)


def test_all_addresses_are_aligned(monkeypatch):
    rows, queries = clustered(2003, 301, 20)
    packed = banks.pack(rows, Plain(), rows.device)
    monkeypatch.setattr(plans, "WORKSPACE", 1 << 21)
    assert _block(2003, 9) == 128
    for chunk in (None, 300):
        monkeypatch.setattr(banks, "CHUNK", chunk)
        for count in (1, 3, 127, 301):
            steps = Aligned()
            screening.kth_distance(queries[:count], rows, packed, 9, True, steps)
            assert steps.seen > 25


class Calls(TorchDispatchMode):
    """The names of the ops that run, but for views and fresh memory."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name not in (
            "slice",
            "select",
            "permute",
            "t",
            "unbind",
            "empty",
            "new_empty",
            "detach",
        ):
            self.names.append(name)
        return result


def test_the_host_waits_once_a_call_and_launches_little(monkeypatch):
    rows, queries = clustered(2003, 23, 19)
    packed = banks.pack(rows, Plain(), rows.device)
    for blocks, workspace in ((1, 1 << 30), (2, 1 << 17)):
        monkeypatch.setattr(plans, "WORKSPACE", workspace)
        assert -(-23 // _block(2003, 9)) == blocks
        with Calls() as calls:
            screening.kth_distance(queries, rows, packed, 9, True, Nothing())
        once = ["index", "index_select", "bitwise_not", "nonzero"]  # the sample; what is not safe
        # Two casts are the product's on a CPU, two fills Nothing's.
        each = ["_to_copy", "_to_copy", "mm", "zeros", "fill_", "fill_"]
        assert sorted(calls.names) == sorted(once + blocks * each)


@pytest.mark.skipif(backends.interpreting(), reason="a minute in the interpreter")
def test_a_long_way_to_the_kth_row(steps, no_fallback):
    rows, queries = clustered(70_001, 5, 33, clusters=3)
    check(queries, rows, 2048, steps)


@pytest.mark.parametrize("rows", [8192, 70_000, 350_000, 10_000_000, 1 << 28])
def test_a_plan_lists_more_than_k_and_less_than_all(rows, monkeypatch):
    monkeypatch.setattr(plans, "LEAST_SAMPLE", 1024)
    for k in (1, 10, rows // 1000, min(2048, rows // 32), rows // 32):
        plan, second = plans.plans(rows, k)
        # Rank r of the sample is at r·N/m of the bank, give or take its square root.
        expected = plan.rank * rows / plan.sample
        assert k * 1.05 < expected < plan.capacity <= rows + 127
        assert plan.capacity % 128 == 0
        assert plan.rank < second.rank <= second.sample == plan.sample <= rows // 8
        assert plan.capacity <= second.capacity <= rows + 127
        at_once = _block(rows, k)
        assert at_once == 1 or at_once * plan.capacity <= plans.WORKSPACE // 8
        assert _block(rows, k, True) <= at_once
    assert not plans.plans(rows, rows // 32 + 1)
    assert not plans.plans((1 << 28) + 1, 1)


def _counted(monkeypatch):
    """How many queries the reference was asked for, call by call."""
    calls = []
    plain = screening._by_reference
    monkeypatch.setattr(screening, "_by_reference", lambda *a: calls.append(len(a[1])) or plain(*a))
    return calls


def _one_try(monkeypatch):
    both = plans.plans
    monkeypatch.setattr(plans, "plans", functools.cache(lambda *given: both(*given)[:1]))


def _many_equal():
    rows, queries = clustered(2003, 9, 19)
    many = rows.clone()
    many[torch.randperm(2003, generator=torch.Generator().manual_seed(1))[:1500]] = rows[0]
    return many, torch.cat([queries, rows[:1]])


def test_queries_that_the_screening_cannot_clear_are_searched_by_the_reference(steps, monkeypatch):
    calls = _counted(monkeypatch)
    _one_try(monkeypatch)
    many, both = _many_equal()
    packed = banks.pack(many, steps, many.device)
    kth = screening.kth_distance(both, many, packed, 7, True, steps)
    assert torch.equal(kth, truth(both, many, 7)[0][:, -1])
    assert len(calls) == 1
    assert 1 <= calls[0] < len(both)  # the duplicates' own query, and not all
    with pytest.MonkeyPatch.context() as patch:  # the bank's norms are not taken again
        patch.setattr(reference, "pack", None)
        screening.kth_distance(both, many, packed, 7, True, steps)


def test_a_second_try_has_longer_lists(steps, no_fallback):
    many, both = _many_equal()
    check(both, many, 7, steps)


@pytest.mark.parametrize("k", [3, 40])
@pytest.mark.parametrize("period", [64, 128, 4096])
def test_a_bank_in_periodic_order_is_sampled_all_over(period, k, steps, monkeypatch, no_fallback):
    """Every 64-th row of 8,192 would be of one class in 64."""
    _one_try(monkeypatch)
    centres = 10 * normal(64, 24, seed=1)
    rows = centres[torch.arange(8192) % period * 64 // period] + normal(8192, 24, seed=2)
    queries = centres[::9] + normal(8, 24, seed=3)
    kth = screening.kth_distance(queries, rows, [], k, True, steps)
    torch.testing.assert_close(kth, truth(queries, rows, k)[0][:, -1], rtol=2e-7, atol=0)


def test_a_sample_is_one_row_of_each_stretch():
    for rows, count in ((8192, 128), (10_007, 1024), (1 << 28, 32768)):
        found = plans.sampled(rows, count, torch.device("cpu"))
        stretch = rows // count
        assert torch.equal(found // stretch, torch.arange(count))
        assert found[-1] < rows
        places = (found % stretch).double() / stretch
        assert abs(places.mean() - 0.5) < 3 / (12 * count) ** 0.5 + 0.5 / stretch
        assert abs(torch.corrcoef(torch.stack([places[1:], places[:-1]]))[0, 1]) < 4 / count**0.5


def test_what_is_not_finite_is_nan(steps, no_fallback):
    rows, queries = clustered(2003, 9, 19)
    packed = banks.pack(rows, steps, rows.device)
    want = truth(queries, rows, 7)[0][:, -1]
    queries = queries.clone()
    queries[2, 3], queries[5, 0] = torch.nan, -torch.inf
    bad = torch.tensor([False, False, True, False, False, True, False, False, False])
    kth = screening.kth_distance(queries, rows, packed, 7, True, steps)
    assert torch.equal(kth.isnan(), bad)
    assert torch.equal(kth[~bad], want[~bad])
    distances, indices = screening.knn(queries, rows, packed, 7, False, steps)
    assert distances[bad].isnan().all()
    assert (indices[bad] == -1).all()
    assert torch.equal(distances[~bad, -1], want[~bad].sqrt())
    rows = rows.clone()
    rows[77, 3] = torch.inf  # as torch.compile lets it pass
    assert screening.kth_distance(queries, rows, [], 7, True, steps).isnan().all()


def test_squares_serve_the_reference(steps):
    rows = normal(700, 33, seed=5) + 3
    packed = banks.pack(rows, steps, rows.device)
    mean, norms = reference.pack(rows)
    torch.testing.assert_close(packed[0], mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(packed[2][SQUARE, :700], norms, rtol=1e-5, atol=0)
