"""The CUDA kernels of nearest in the emulator: each step alone, then whole searches.

Every screening kernel and the shapes of launches for cards of 227, 163 and 99 KB of shared memory.
Steps are compared with float64, or with the plain torch ones of tests/ops/test_screening.py.
"""

import importlib.util
import math
import types
from pathlib import Path

import pytest
import torch

from benchmarks.card import cuda_cubins, small_cases
from robustft import backends
from robustft.backends.cuda import device, launcher, ring
from robustft.backends.cuda import nearest as cuda
from robustft.backends.cuda.device import Card
from robustft.backends.search import banks, interface, packing, plans, screening
from robustft.backends.search.interface import FLOOR, RADIUS, REACH
from robustft.backends.search.packing import LEVEL, NEAR, NORM, RESIDUAL, ROWS, SCALE, SQUARE
from robustft.ops import FeatureBank, kth_distance

pytestmark = [
    pytest.mark.emulator,
    pytest.mark.skipif(not backends.emulating(), reason="runs under ROBUSTFT_CUDA_EMULATOR"),
]


def _cases(name):
    path = Path(__file__).parents[1] / "ops" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{name}_cases", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


plain = _cases("test_screening")
contract = _cases("test_nearest")
normal = plain.normal
STEPS = cuda._STEPS

CARDS = {
    "sm_90": Card(3, 227 << 10, False),
    "sm_80": Card(3, 163 << 10, False),
    "sm_89": Card(3, 99 << 10, False),
    "sm_90a": Card(3, 227 << 10, True),
}


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Searches of a thousand rows are screened, too."""
    monkeypatch.setattr(plans, "LEAST_SAMPLE", 64)
    plans.plans.cache_clear()
    library = launcher._Emulator.of(launcher.emulator())
    yield
    plans.plans.cache_clear()
    library.order(0)


@pytest.fixture
def card(request, monkeypatch):
    monkeypatch.setattr(cuda, "USE_WGMMA", True)
    monkeypatch.setattr(cuda, "card_of", lambda device: CARDS[request.param])
    return CARDS[request.param]


every_card = pytest.mark.parametrize("card", CARDS, indirect=True)
both_kernels = pytest.mark.parametrize("card", ["sm_90", "sm_90a"], indirect=True)


def order(seed):
    """Of the emulator's threads and blocks."""
    launcher._Emulator.of(launcher.emulator()).order(seed)


def packed(x, mean=None):
    """As queries are."""
    mean = torch.zeros(x.shape[1]) if mean is None else mean
    into = packing.padded(*x.shape, x.device)
    into.halves.fill_(torch.nan)
    into.numbers.fill_(torch.nan)
    STEPS.round_rows(x, mean, into)
    return into


def packed_bank(x, mean=None):
    mean = torch.zeros(x.shape[1]) if mean is None else mean
    return banks.pack_tiles(x, mean, STEPS)


def lists_of(count, capacity):
    integers = torch.full((3, count), -9, dtype=torch.int32)
    integers[0] = 0
    rows = torch.full((count, capacity), -7, dtype=torch.int32)
    return interface.Lists(rows, torch.full((count, capacity), torch.nan), *integers)


# --- packing ---


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


# --- screening ---


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


# --- radii, bounds, selection ---


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


# --- whole searches ---


@pytest.mark.parametrize("card", ["sm_90a"], indirect=True)
@pytest.mark.parametrize("name", plain.HARD)
def test_hard_banks(name, card):
    rows, queries = plain.HARD[name]
    plain.check(queries.repeat(8, 1)[:65], rows, 7, STEPS)  # more than 64: wgmma


@pytest.mark.parametrize("name", contract.LARGE)
def test_large_banks(name, monkeypatch):
    monkeypatch.setattr(plans, "LEAST_SAMPLE", 1024)
    rows, queries = contract.LARGE[name]
    plain.check(queries[-5:], rows, 37, STEPS)


@both_kernels
def test_ordinary_features_need_no_second_search(card, monkeypatch):
    monkeypatch.setattr(screening, "_by_reference", None)
    rows, queries = plain.clustered(5003, 67, 96)
    plain.check(queries, rows, 33, STEPS)


@both_kernels
def test_no_order_of_work_changes_a_bit(card):
    rows, queries = plain.clustered(1501, 130, 65)
    results = []
    for seed in (0, 1, 2, 3):
        order(seed)
        bank = banks.pack(rows, STEPS, rows.device)
        results.append([*bank, *screening.knn(queries, rows, bank, 9, True, STEPS)])
        results[-1].append(screening.kth_distance(queries, rows, bank, 9, True, STEPS))
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@pytest.mark.parametrize("k", [1, 40])
def test_chunks_change_no_bit(k, monkeypatch):
    rows, queries = plain.clustered(1501, 9, 65)
    bank = banks.pack(rows, STEPS, rows.device)
    want = screening.knn(queries, rows, bank, k, True, STEPS)
    for chunk in (128, 300, 1024):
        monkeypatch.setattr(banks, "CHUNK", chunk)
        assert all(map(torch.equal, screening.knn(queries, rows, bank, k, True, STEPS), want))


def test_a_saved_bank_keeps_its_tiles(tmp_path, monkeypatch):
    rows, queries = plain.clustered(1501, 9, 65)
    bank = FeatureBank(rows)
    want = kth_distance(queries, bank, 9, backend="cuda")
    assert torch.equal(want, plain.truth(queries, rows, 9)[0][:, -1])
    bank.save(tmp_path / "bank.safetensors")
    loaded = FeatureBank.load(tmp_path / "bank.safetensors")
    monkeypatch.setattr(cuda, "pack", None)
    assert torch.equal(kth_distance(queries, loaded, 9, backend="cuda"), want)


# --- shapes of launches ---


@pytest.mark.parametrize(
    ("name", "dim", "kernel", "stages"),
    [
        ("sm_90", 64, "screen<128, true>", 6),
        ("sm_90", 512, "screen<128, true>", 6),
        ("sm_90", 640, "screen<128, true>", 4),
        ("sm_90", 768, "screen<128, true>", 2),
        ("sm_90", 1024, "screen<64, true>", 6),
        ("sm_90", 4096, "screen<128, false>", 6),
        ("sm_80", 512, "screen<128, true>", 2),
        ("sm_80", 768, "screen<64, true>", 4),
        ("sm_80", 1024, "screen<64, true>", 2),
        ("sm_89", 512, "screen<64, true>", 2),
        ("sm_89", 640, "screen<128, false>", 3),
        ("sm_90a", 512, "screen_wgmma<256, true, 2>", 3),
        ("sm_90a", 640, "screen_wgmma<128, true, 2>", 4),
        ("sm_90a", 768, "screen_wgmma<256, false, 2>", 4),
    ],
)
def test_shapes(name, dim, kernel, stages):
    _, shared, wgmma = CARDS[name]
    shape = cuda._shape(1000, dim // 64, shared, wgmma)
    assert (shape.kernel, shape.stages) == (f"nearest::{kernel}", stages)
    few = cuda._shape(64, dim // 64, shared, wgmma)
    assert few.kernel in ("nearest::screen<64, true>", "nearest::screen<128, false>")
    for one in (shape, few):
        assert one.shared <= shared
        assert one.stages >= 2


@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (10, 0)])
def test_wgmma_is_for_sm_90_alone(capability, monkeypatch):
    monkeypatch.setattr(device, "emulating", lambda: None)
    of = types.SimpleNamespace(multi_processor_count=7, shared_memory_per_block_optin=101376)
    of.major, of.minor = capability
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: of)
    card = device.card_of.__wrapped__(torch.device("cuda", 0))
    assert card == (7, 101376, capability == (9, 0))


@pytest.mark.parametrize("use", [False, True])
def test_wgmma_is_taken_where_it_is_wanted(use, monkeypatch):
    launched = []
    monkeypatch.setattr(cuda, "USE_WGMMA", use)
    monkeypatch.setattr(cuda, "launch", lambda source, *_, **__: launched.append(source))
    x = packing.padded(128, 64, torch.device("cpu"))
    STEPS.screen(x, torch.zeros(3, 128), x, 0, lists_of(65, 8))
    STEPS.screen(x, torch.zeros(3, 128), x, 0, lists_of(64, 8))
    assert launched == ["nearest_wgmma" if use else "nearest_screen", "nearest_screen"]


@pytest.mark.parametrize("query_tiles", [1, 2, 7, 50, 391, 4000])
@pytest.mark.parametrize("steps", [1, 5, 79, 2735])
def test_splits_fill_the_card(query_tiles, steps):
    processors = 132
    splits = cuda._splits(query_tiles, steps, processors)
    assert 1 <= splits <= steps
    blocks = query_tiles * splits
    waves = math.ceil(blocks / processors)
    if 1 < splits < steps:  # the last wave is as full as whole splits allow
        assert waves * processors - blocks < query_tiles
    if query_tiles * steps >= processors:
        assert blocks >= processors / 2


def test_small_cases_reach_every_screening_kernel(monkeypatch):
    """For the sanitizers of a card: what they do not run they do not see."""
    reached, plain_launch = set(), cuda.launch
    monkeypatch.setattr(cuda, "card_of", lambda device: CARDS["sm_90a"])
    monkeypatch.setattr(
        cuda, "launch", lambda *given, **more: (reached.add(given[1]), plain_launch(*given, **more))
    )
    small_cases.main(["--backend", "cuda", "--op", "nearest"])
    for source in ("nearest_screen", "nearest_wgmma", "nearest_select", "nearest_pack"):
        assert set(cuda_cubins.kernels(source)) <= reached
