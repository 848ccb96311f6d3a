"""nearest against float64 brute force, on friendly and on adversarial banks."""

import math
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from robustft.backends.reference import nearest as reference
from robustft.errors import InputError
from robustft.ops import FeatureBank, knn, kth_distance


def normal(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def truth(queries, rows, dtype=torch.float32):
    """All float64 distances, rounded to `dtype`, sorted; equal ones by index."""
    distances = torch.stack([(q - rows.double()).square().sum(1) for q in queries.double()])
    return distances.to(dtype).sort(dim=1, stable=True)


def check(queries, bank, rows, k, dtype=torch.float32, backend="auto"):
    want, order = truth(queries, rows, dtype)
    distances, indices = knn(queries, bank, k, backend=backend)
    tolerance = {torch.float32: 2e-7, torch.float64: 1e-14}[dtype]
    torch.testing.assert_close(distances, want[:, :k], rtol=tolerance, atol=0)
    assert torch.equal(indices, order[:, :k])
    assert torch.equal(kth_distance(queries, bank, k, backend=backend), distances[:, -1])
    plain, same = knn(queries, bank, k, squared=False, backend=backend)
    assert torch.equal(plain, distances.sqrt())
    assert torch.equal(same, indices)
    root = kth_distance(queries, bank, k, squared=False, backend=backend)
    assert torch.equal(root, plain[:, -1])


SIZES = [(1, 1, 1), (7, 129, 3), (127, 507, 16), (3, 127, 129), (5, 31, 63), (33, 509, 507)]
SIZES += [(66, 1153, 70)]  # on a card: large enough to be screened (tests/conftest.py)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_random(size, cpu_backend):
    q, n, d = size
    queries, rows = normal(q, d, seed=1), normal(n, d, seed=2)
    bank = FeatureBank(rows)
    for k in sorted({1, n // 40 + 1, n // 2 + 1, n}):
        check(queries, bank, rows, k, backend=cpu_backend)
        check(queries, rows, rows, k, backend=cpu_backend)


def adversarial():
    rows, queries = normal(300, 8, seed=1), normal(20, 8, seed=2)
    few = rows[torch.arange(300) % 3]
    yield "duplicates", few, torch.cat([queries, few[:5]])
    yield "all equal", rows[:1].expand(300, -1), torch.cat([queries, rows[:2]])
    yield "zero rows", torch.cat([torch.zeros(100, 8), rows]), torch.cat([queries, queries[:1] * 0])
    yield "huge norms", rows * 10.0 ** torch.arange(300).remainder(15)[:, None], queries * 1e7
    yield "one huge row", torch.cat([rows, torch.full((1, 8), 1e15)]), queries
    yield "far mean", rows + 1000, queries + 1000
    yield "far mean, far query", rows + 1000, queries - 1000
    near = 1 + 1e-6 * normal(300, 8, seed=3)
    yield "sixth digit", near, near[::11]
    yield "sixth digit far away", near, queries
    yield "tiny", rows * 1e-18, queries * 1e-18
    yield "on a line", torch.arange(300.0)[:, None] * torch.ones(8), torch.full((1, 8), 149.5)
    yield "grid", (rows * 1.5).round(), (queries * 1.5).round()


CASES = {name: (rows, queries) for name, rows, queries in adversarial()}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("k", [1, 10, 150, 300])
def test_adversarial(name, k, cpu_backend):
    rows, queries = CASES[name]
    check(queries, FeatureBank(rows), rows, k, backend=cpu_backend)


def clustered(n, dim, clusters, noise, seed=0):
    """Unit rows about centres that share a mean, sorted by cluster; and as many centres."""
    centres = 1 + F.normalize(normal(clusters, dim, seed=seed)) * dim**0.5
    labels = torch.arange(n) * clusters // n
    return F.normalize(centres[labels] + noise * normal(n, dim, seed=seed + 1)), centres


def adversarial_large():
    """Banks of many panels, for what takes a sample of a bank."""
    n, dim = 9001, 65
    rows, centres = clustered(n, dim, 90, 0.3)
    queries = F.normalize(centres[::3] + 0.3 * normal(30, dim, seed=7))
    yield "clustered", rows, queries
    yield "tight clusters far apart", *(1000 * x for x in (rows.round(decimals=2), queries))
    yield "isotropic", normal(n, dim, seed=1), normal(20, dim, seed=2)
    yield "three distinct rows", rows[torch.arange(n) % 3], torch.cat([queries[:5], rows[:1]])
    yield "all equal", rows[:1].expand(n, -1), torch.cat([queries[:3], rows[:1]])
    many = rows.clone()
    many[:: n // 4000] = rows[5]
    yield "thousands of one row", many, torch.cat([queries, rows[5:6]])
    yield (
        "zero rows",
        torch.cat([rows, torch.zeros(509, dim)]),
        torch.cat([queries, queries[:1] * 0]),
    )
    yield "huge", rows * 1e18, queries * 1e18
    yield "tiny", rows * 1e-20, queries * 1e-20
    yield "norms of all sizes", rows * 10.0 ** torch.arange(n).remainder(31)[:, None], queries * 1e9
    yield "far mean", rows + 1000, queries + 1000
    outlier = torch.ones(dim)
    outlier[dim // 2] = 300
    yield "outlier dimension", rows * outlier, queries * outlier
    near = rows[:1] + 1e-5 * normal(n, dim, seed=3)
    yield "near-duplicates", near, near[::500] + 1e-6
    # Rounding that misleads as much as it can. With 127 the step is 1, negated rows make the mean
    # 0, and the queries are on the grid. What is 0.501 off it seems 1 off, 0.499 nothing, and the
    # second column makes those farther that seem nearer.
    base = (normal(dim, seed=4) * 20).round()
    share = torch.linspace(0.3, 1, 500)[:, None]
    up = torch.rand(500, dim, generator=torch.Generator().manual_seed(6)) < share
    grid = base + torch.where(up, 0.501, 0.499) * normal(500, dim, seed=5).sign()
    grid[:, 1] = base[1] + (4 * (1 - share[:, 0])).round()
    grid[:, 0] = base[0] = 127
    yield "rounding at its worst", torch.cat([grid, -grid]), torch.stack([base, -base])


LARGE = {name: (rows, queries) for name, rows, queries in adversarial_large()}


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("k", [1, 100, 997])
def test_adversarial_large(name, k, native):
    rows, queries = LARGE[name]
    check(queries, FeatureBank(rows), rows, k, backend=native)


# Run in a process of its own: an instruction set is chosen once.
EVERY_CASE = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("nearest_cases", sys.argv[1])
cases = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cases)
from robustft import _native
assert _native.isa() == sys.argv[2]
for q, n, d in cases.SIZES:
    queries, rows = cases.normal(q, d, seed=1), cases.normal(n, d, seed=2)
    for k in {1, n // 3 + 1, n}:
        cases.check(queries, cases.FeatureBank(rows), rows, k, backend="cpu")
for name, (rows, queries) in (cases.CASES | cases.LARGE).items():
    bank = cases.FeatureBank(rows)
    cases.check(queries[-9:], bank, rows, 37, backend="cpu")
print("every case", cases.statistics())
"""


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512", "avx512vnni", "avx512bf16", "amx"])
def test_every_instruction_set(native, isa):
    from robustft import _native

    if isa not in _native.isas():
        pytest.skip(f"this processor or build does not run {isa}")
    done = subprocess.run(
        [sys.executable, "-c", EVERY_CASE, __file__, isa],
        env=os.environ | {"ROBUSTFT_CPU_ISA": isa, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "every case" in done.stdout


def statistics():
    from robustft.backends.cpu import nearest as cpu

    return cpu.statistics()


def test_statistics_say_what_screening_left(native):
    rows, centres = clustered(20_011, 129, 200, 0.5)
    queries = F.normalize(centres + 0.5 * normal(200, 129, seed=9))
    bank = FeatureBank(rows)
    before = statistics()
    check(queries, bank, rows, 20, backend=native)  # four searches
    after = statistics()
    assert after.queries - before.queries == 4 * 200
    assert after.scanned == before.scanned
    assert after.retried - before.retried < 4 * 200 / 20
    assert 20 * 4 * 200 < after.checked - before.checked < 40 * 20 * 4 * 200
    same = FeatureBank(rows[:1].expand(20_011, -1))  # nothing can be told apart
    kth_distance(queries[:7], same, 20, backend=native)
    assert statistics().scanned == after.scanned + 7


def test_threads_change_no_bit(native, with_threads):
    for name in ("clustered", "three distinct rows", "near-duplicates"):
        rows, queries = LARGE[name]
        with_threads(1)
        bank = FeatureBank(rows)
        want = knn(queries, bank, 37, backend=native)
        for threads in (2, 5):
            with_threads(threads)
            again = FeatureBank(rows)
            packed = zip(bank.packed(native), again.packed(native), strict=True)
            assert all(torch.equal(a.view(torch.int32), b.view(torch.int32)) for a, b in packed)
            for _ in range(3):
                assert all(map(torch.equal, knn(queries, again, 37, backend=native), want))
            assert torch.equal(kth_distance(queries, again, 37, backend=native), want[0][:, -1])


def test_batches_of_queries_change_no_bit(native):
    rows, centres = clustered(2003, 33, 20, 0.4)
    queries = normal(2311, 33, seed=3) * 0.1 + centres[torch.arange(2311) % 20]
    bank = FeatureBank(rows)
    distances, indices = knn(queries, bank, 5, backend=native)
    assert torch.equal(kth_distance(queries, bank, 5, backend=native), distances[:, -1])
    for first, last in ((0, 1), (1, 4), (4, 69), (69, 2311)):
        got = knn(queries[first:last], bank, 5, backend=native)
        assert torch.equal(got[0], distances[first:last])
        assert torch.equal(got[1], indices[first:last])
        got = knn(queries[first:last], rows, 5, backend=native)
        assert torch.equal(got[0], distances[first:last])


def test_the_backends_agree_bit_for_bit(native):
    for rows, queries in (CASES | LARGE).values():
        want = knn(queries[:9], rows, 7, backend="reference")
        got = knn(queries[:9], rows, 7, backend=native)
        torch.testing.assert_close(got[0], want[0], rtol=2e-7, atol=0)
        assert torch.equal(got[1], want[1])


def test_overflow_gives_inf_and_nothing_worse(cpu_backend):
    rows = normal(300, 8, seed=1)
    rows[200:] *= 1e25
    queries = torch.cat([normal(3, 8, seed=2), normal(1, 8, seed=3) * 1e25])
    check(queries, rows, rows, 10, backend=cpu_backend)
    assert kth_distance(queries, rows, 250, backend=cpu_backend).isinf().all()
    finite = kth_distance(queries, rows, 200, backend=cpu_backend).isfinite()
    assert finite.tolist() == [True] * 3 + [False]


def test_the_certificate_is_what_makes_it_exact(monkeypatch):
    calls = []
    search_all = reference._search_all
    monkeypatch.setattr(
        reference, "_search_all", lambda q, *rest: calls.append(len(q)) or search_all(q, *rest)
    )
    rows, queries = F.normalize(normal(507, 64, seed=1)), F.normalize(normal(127, 64, seed=2))
    check(queries, rows, rows, 20, backend="reference")
    assert sum(calls) == 0  # ordinary features need no second search
    rows, queries = CASES["duplicates"]
    check(queries, rows, rows, 10, backend="reference")
    assert sum(calls) >= len(queries)


def test_lower_bound_is_one():
    for name, (rows, queries) in CASES.items():
        mean, norms = reference.pack(rows)
        exact = torch.stack([(q - rows.double()).square().sum(1) for q in queries.double()])
        kept, outside = reference._screen(queries, rows, mean, norms, 50)
        rest = exact.scatter(1, kept, math.inf)
        assert (rest.amin(1) >= outside).all(), name


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
def test_a_lower_product_precision_changes_no_bit(precision):
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    rows, queries = F.normalize(normal(507, 64, seed=1)), F.normalize(normal(127, 64, seed=2))
    want = knn(queries, rows, 9, backend="reference")
    try:
        settings.fp32_precision = precision
        got = knn(queries, rows, 9, backend="reference")
        assert reference._product_error(queries) > 2**-8  # this machine may not use what is set
    finally:
        settings.fp32_precision = before
    assert all(map(torch.equal, got, want))


@pytest.mark.parametrize("budget", [1, 4096, 100_000])
@pytest.mark.parametrize("name", ["sixth digit", "duplicates", "far mean"])
def test_block_size_changes_no_bit(budget, name, monkeypatch):
    rows, queries = CASES[name]
    want = knn(queries, FeatureBank(rows), 7, backend="reference")
    kth = kth_distance(queries, FeatureBank(rows), 7, backend="reference")
    monkeypatch.setattr(reference, "BUDGET", budget)
    assert all(map(torch.equal, knn(queries, FeatureBank(rows), 7, backend="reference"), want))
    assert torch.equal(kth_distance(queries, FeatureBank(rows), 7, backend="reference"), kth)


def test_permuting_the_bank_permutes_the_indices(cpu_backend):
    rows, queries = normal(129, 7, seed=1), normal(31, 7, seed=2)
    order = torch.randperm(129, generator=torch.Generator().manual_seed(0))
    distances, indices = knn(queries, rows, 40, backend=cpu_backend)
    shuffled, found = knn(queries[:5], rows[order], 40, backend=cpu_backend)
    assert torch.equal(shuffled, distances[:5])
    assert torch.equal(order[found], indices[:5])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_taken_exactly(dtype, cpu_backend):
    queries, rows = normal(7, 16, seed=1, dtype=dtype), normal(127, 16, seed=2, dtype=dtype)
    check(queries, FeatureBank(rows), rows, 9, backend=cpu_backend)
    check(queries.float(), rows, rows, 9, backend=cpu_backend)
    with torch.autocast("cpu", torch.bfloat16):
        check(queries.float(), rows, rows, 9, backend=cpu_backend)


def test_float64():
    queries, rows = normal(7, 16, seed=1, dtype=torch.float64), normal(127, 16, seed=2)
    rows64 = rows.double() + 1e-9 * normal(127, 16, seed=3, dtype=torch.float64)
    check(queries, FeatureBank(rows64), rows64, 9, torch.float64)
    check(queries, FeatureBank(rows), rows, 9, torch.float64)
    check(queries.float(), rows64, rows64, 9, torch.float64)


def test_definition():
    queries, rows = normal(7, 5, seed=1, dtype=torch.float64), normal(31, 5, seed=2).double()
    for squared in (True, False):
        distances, indices = reference.nearest(queries, rows, 31, squared)
        got, found = knn(queries, rows, 31, squared=squared)
        torch.testing.assert_close(got, distances, rtol=1e-13, atol=0)
        assert torch.equal(found, indices)


def test_squared_distance_of_unit_vectors_is_2_minus_2_cosine():
    queries, rows = F.normalize(normal(7, 16, seed=1)), F.normalize(normal(127, 16, seed=2))
    cosines = (queries.double() @ rows.double().T).topk(9).values
    torch.testing.assert_close(
        knn(queries, rows, 9)[0].double(), 2 - 2 * cosines, rtol=1e-5, atol=1e-6
    )


def test_strides_do_not_matter(cpu_backend):
    queries, rows = normal(5, 14, seed=1)[:, ::2], normal(7, 129, seed=2).T
    check(queries, rows, rows, 9, backend=cpu_backend)
    check(queries, FeatureBank(rows), rows, 9, backend=cpu_backend)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_queries_give_nan(bad, cpu_backend):
    queries, rows = normal(5, 7, seed=1), normal(129, 7, seed=2)
    want, order = knn(queries, rows, 9, backend=cpu_backend)
    queries[2, 3] = bad
    for k in (9, 129):
        distances, indices = knn(queries, rows, k, backend=cpu_backend)
        assert distances[2].isnan().all()
        assert (indices[2] == -1).all()
        assert kth_distance(queries, rows, k, backend=cpu_backend)[2].isnan()
    fine = [0, 1, 3, 4]
    assert torch.equal(knn(queries, rows, 9, backend=cpu_backend)[0][fine], want[fine])
    assert torch.equal(knn(queries, rows, 9, backend=cpu_backend)[1][fine], order[fine])


def test_no_gradient(cpu_backend):
    queries, rows = normal(5, 7, seed=1).requires_grad_(), normal(31, 7, seed=2).requires_grad_()
    assert not kth_distance(queries, rows, 3, backend=cpu_backend).requires_grad
    assert not knn(queries, FeatureBank(rows), 3, backend=cpu_backend)[0].requires_grad


class Largest(TorchDispatchMode):
    """Records the largest tensor that any operation makes, in bytes."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for part in out if isinstance(out, list | tuple) else [out]:
            if isinstance(part, torch.Tensor):
                self.size = max(self.size, part.numel() * part.element_size())
        return out


@pytest.mark.parametrize("name", ["random", "duplicates"])
def test_memory_is_never_q_times_n(name, monkeypatch):
    rows, queries = normal(5003, 4, seed=1), normal(509, 4, seed=2)
    if name == "duplicates":
        rows[:] = rows[:1]
    bank = FeatureBank(rows)
    monkeypatch.setattr(reference, "BUDGET", 1 << 17)
    with Largest() as largest:
        kth_distance(queries, bank, 5, backend="reference")
    assert largest.size < 509 * 5003 * 4 / 20
    assert largest.size <= max(1 << 17, rows.numel() * 4)


def test_opcheck(cpu_backend):
    queries, bank = normal(5, 7, seed=2), FeatureBank(normal(129, 7, seed=1))
    for packed in (bank.packed(cpu_backend), []):
        args = (queries, bank.rows, packed, 9, False, cpu_backend)
        torch.library.opcheck(torch.ops.robustft.nearest_kth_distance.default, args)
        torch.library.opcheck(torch.ops.robustft.nearest_knn.default, args)
    args = (normal(7, 5).T, bank.rows[::2].T.contiguous().T, [], 65, True, cpu_backend)
    torch.library.opcheck(torch.ops.robustft.nearest_knn.default, args)


def test_compiles_to_one_graph():
    queries, rows = normal(5, 7, seed=2), normal(129, 7, seed=1)
    bank = FeatureBank(rows)

    def step(queries, rows):
        return kth_distance(queries * 2, rows, 9) + 1, *knn(queries, bank, 3, squared=False)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for got, want in zip(compiled(queries, rows), step(queries, rows), strict=True):
        assert torch.equal(got, want)
    torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)(queries[:3], rows)
    rows[7, 2] = math.nan  # a compiled graph cannot refuse the bank
    assert compiled(queries, rows)[0].isnan().all()


Q, R = torch.ones(3, 2), torch.ones(4, 2)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        (([1.0], R, 1), {}, "queries: got list, expected a torch.Tensor"),
        ((Q[0], R, 1), {}, r"queries: got shape \(2,\), expected \[Q, D\]"),
        ((Q[:0], R, 1), {}, "queries: got an empty tensor"),
        ((Q.int(), R, 1), {}, "queries: got dtype torch.int32"),
        ((Q, R[:0], 1), {}, "bank: got an empty tensor"),
        ((Q, R.tolist(), 1), {}, "bank: got list, expected a FeatureBank"),
        ((Q[:, :1], R, 1), {}, "queries: got width 1, expected 2"),
        ((Q, FeatureBank(torch.ones(4, 3)), 1), {}, "queries: got width 2, expected 3"),
        ((Q.to("meta"), R, 1), {}, "queries: got device meta, expected cpu"),
        ((Q, R, 0), {}, "k: got 0, expected 1 to 4"),
        ((Q, R, 5), {}, "k: got 5, expected 1 to 4"),
        ((Q, R, 1.0), {}, "k: got float, expected an int"),
        ((Q, R, True), {}, "k: got bool, expected an int"),
        ((Q, R / 0, 1), {}, r"bank: got NaN or Inf in 4 rows \(0, 1, 2, 3\)"),
        ((Q, R, 1), {"backend": "gpu"}, "backend: got 'gpu'"),
        ((Q, FeatureBank(R), 1), {"backend": "gpu"}, "backend: got 'gpu'"),
    ],
)
@pytest.mark.parametrize("function", [kth_distance, knn])
def test_errors_name_the_argument(function, args, kwargs, message):
    with pytest.raises(InputError, match=message):
        function(*args, **kwargs)
