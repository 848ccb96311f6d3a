"""kth_distance against FAISS, scikit-learn and plain torch; and what packing a bank costs.

All search a bank that was prepared before: FAISS's index, torch's squared norms, our packed rows.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import probes
from benchmarks.harness import Call, Case, Factory, robustft
from robustft import backends
from robustft.ops import FeatureBank, kth_distance

SHAPE = "QxNxDxk"
QUICK = [(16, 2000, 64, 10)]
DEFAULT = [
    *((q, 100_000, 512, k) for k in (1, 100) for q in (1, 16, 64, 240, 2000)),
    *((q, 350_000, 512, 350) for q in (1, 64, 2000)),
]
FULL = [
    (q, n, d, k)
    for n, d, k in itertools.product((100_000, 350_000), (512, 768), (1, 100, 350))
    for q in (1, 16, 64, 240, 2000)
]
CHECKED = 16  # queries that are compared with float64
MATRIX = 1 << 26  # entries of torch's blocks of distances: 256 MB
MATRIX_CUDA = 1 << 29
FEW = 128  # queries: up to these a GPU reads the bank for longer than it multiplies


def cases(shapes: list[tuple[int, ...]], device: str, quick: bool) -> Iterator[Case]:
    size = probes.QUICK if quick else probes.STREAM
    for bank, group in itertools.groupby(shapes, key=lambda shape: shape[1:3]):
        wanted = list(group)
        rows, dim = bank
        data = Data(rows, dim, max(shape[0] for shape in wanted), device)
        yield _pack_case(data, size)
        for queries, _, _, k in wanted:
            yield _search_case(data, queries, k)


class Data:
    """Unit rows like CLIP's: a common mean, 1,000 clusters whose centres have cosines of 0.5 to
    0.8, and 0.6 to 0.9 between the rows of one cluster. What is prepared of them is shared by
    cases."""

    def __init__(self, rows: int, dim: int, queries: int, device: str) -> None:
        generator = torch.Generator(device).manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, device=device, generator=generator) / dim**0.5

        own = 0.5 + 0.5 * torch.rand(1000, 1, device=device, generator=generator)
        centers = F.normalize(random(dim), dim=0) + own * random(1000, dim)

        def draw(count: int) -> Tensor:
            which = torch.randint(0, len(centers), (count,), device=device, generator=generator)
            x = random(count, dim).mul_(0.5).add_(centers[which])
            return F.normalize(x, dim=1, out=x)

        self.rows, self.queries, self.device = draw(rows), draw(queries), device

    @functools.cached_property
    def bank(self) -> FeatureBank:
        return FeatureBank(self.rows)

    @functools.cached_property
    def host_bank(self) -> FeatureBank:
        return FeatureBank(self.rows.cpu())

    @functools.cached_property
    def faiss(self) -> object:
        return _faiss_index(self.rows)

    @functools.cached_property
    def norms(self) -> Tensor:
        return self.rows.square().sum(1)

    @functools.cached_property
    def scikit(self) -> object:
        from sklearn.neighbors import NearestNeighbors

        _cpu_only(self.rows)
        return NearestNeighbors(algorithm="brute").fit(self.rows.numpy())


def _search_case(data: Data, queries: int, k: int) -> Case:
    q = data.queries[:queries]
    count, dim = data.rows.shape
    checked = torch.linspace(0, queries - 1, min(CHECKED, queries)).long()
    on_card = data.device == "cuda"
    # A GPU's floor is the float16 product, or reading the float16 bank once.
    work: dict[str, Any] = {
        "amount": 2.0 * queries * count * dim,
        "unit": "GFLOP/s",
        "probes": probes.products(q, data.rows, torch.float16 if on_card else torch.float32),
    }
    if on_card and queries <= FEW:
        work |= {
            "amount": 2.0 * count * dim,
            "unit": "GB/s",
            "probes": probes.streams(data.device),
        }
    return Case(
        op="nearest",
        variant=f"N = {count:,}, D = {dim}, k = {k}",
        mode="search",
        shape=f"Q = {queries:,}",
        dtype="float32",
        **work,
        providers={
            **(
                {"FAISS GpuIndexFlatL2": lambda: _faiss_gpu(data, q, k)}
                if on_card
                else {
                    "FAISS IndexFlatL2": lambda: _faiss(data, q, k),
                    "scikit-learn": lambda: _scikit(data, q, k),
                }
            ),
            "torch topk": lambda: _torch(data, q, k, _topk),
            "torch kthvalue": lambda: _torch(data, q, k, _kthvalue),
            **robustft("nearest", data.device, torch.float32, lambda b: ours(data, q, k, b)),
            **({"robustft cuda, wgmma": lambda: _wgmma(data, q, k)} if on_card else {}),
            **_streamed(data, q, k),
        },
        truth=lambda: [_truth(q[checked], data.rows, k)],
        compared=lambda results: [results[0][checked]],
        error_on="all" if len(checked) == queries else f"{len(checked)} queries",
        # The expansion |q|² + |v|² − 2<q, v> of the others loses digits, but not that many.
        tolerance=1e-3,
    )


def _pack_case(data: Data, size: int) -> Case:
    count, dim = data.rows.shape

    def pack(backend: str) -> Call:
        module = backends.load("nearest", data.device, torch.float32, backend)
        return lambda: module.pack(data.rows)

    providers: dict[str, Factory] = {
        "FAISS IndexFlatL2": lambda: lambda: _faiss_index(data.rows),
        **robustft("nearest", data.device, torch.float32, pack),
        "robustft FeatureBank": lambda: lambda: FeatureBank(data.rows),  # checks and copies too
    }
    return Case(
        op="nearest",
        mode="pack",
        shape=f"N = {count:,}, D = {dim}",
        dtype="float32",
        amount=4.0 * count * dim,
        unit="GB/s",
        probes=probes.streams(data.device, size),
        providers=providers,
    )


def ours(data: Data, q: Tensor, k: int, backend: str) -> Callable[[], list[Tensor]]:
    """A search with a backend, whose bank is packed beforehand."""
    data.bank.packed(backend)
    return lambda: [kth_distance(q, data.bank, k, backend=backend)]


def _wgmma(data: Data, q: Tensor, k: int) -> Call:
    """Backend "cuda" with its sm_90a kernel, whatever it takes by itself."""
    if torch.cuda.get_device_capability() != (9, 0):
        raise ImportError("it needs a card of capability 9.0")
    search = ours(data, q, k, "cuda")
    from robustft.backends.cuda import nearest

    def call() -> list[Tensor]:
        before, nearest.USE_WGMMA = nearest.USE_WGMMA, True
        try:
            return search()
        finally:
            nearest.USE_WGMMA = before

    return call


def _streamed(data: Data, q: Tensor, k: int) -> dict[str, Factory]:
    """The same search of a bank that stays on the host, where there is a GPU to search it."""
    if data.device == "cpu":
        return {}

    def make(backend: str) -> Call:
        data.host_bank.packed(backend, q)
        return lambda: [kth_distance(q, data.host_bank, k, backend=backend)]

    found = robustft("nearest", data.device, torch.float32, make)
    return {
        f"{name}, bank on the host": factory
        for name, factory in found.items()
        if name != "robustft reference"
    }


def _faiss(data: Data, q: Tensor, k: int) -> Call:
    index, queries = data.faiss, q.numpy()

    def call() -> list[Tensor]:
        distances, _ = index.search(queries, k)  # type: ignore[attr-defined]
        return [torch.from_numpy(distances)[:, -1]]

    return call


def _faiss_gpu(data: Data, q: Tensor, k: int) -> Call:
    import faiss

    if not hasattr(faiss, "StandardGpuResources"):
        raise ImportError("this faiss serves CPU tensors alone: pip install faiss-gpu-cu12")
    import faiss.contrib.torch_utils

    resources = faiss.StandardGpuResources()
    index = faiss.GpuIndexFlatL2(resources, data.rows.shape[1])
    index.add(data.rows)
    return lambda: [index.search(q, k)[0][:, -1]]


def _faiss_index(rows: Tensor) -> object:
    import faiss

    _cpu_only(rows)
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(rows.shape[1])
    index.add(rows.numpy())
    return index


def _scikit(data: Data, q: Tensor, k: int) -> Call:
    import threadpoolctl

    search, queries = data.scikit, q.numpy()

    def call() -> list[Tensor]:
        with threadpoolctl.threadpool_limits(torch.get_num_threads()):
            distances, _ = search.kneighbors(queries, k)  # type: ignore[attr-defined]
        return [torch.from_numpy(distances)[:, -1].square()]

    return call


def _torch(data: Data, q: Tensor, k: int, select: Callable[[Tensor, int], Tensor]) -> Call:
    """One product, by blocks of queries, and a selection of the k-th."""
    rows, norms = data.rows, data.norms
    step = max(1, (MATRIX if data.device == "cpu" else MATRIX_CUDA) // len(rows))

    def call() -> list[Tensor]:
        found = []
        for part in q.split(step):
            kth = select(torch.addmm(norms, part, rows.T, alpha=-2), k)
            found.append(kth + part.square().sum(1))
        return [torch.cat(found)]

    return call


def _topk(distances: Tensor, k: int) -> Tensor:
    return distances.topk(k, largest=False).values[:, -1]


def _kthvalue(distances: Tensor, k: int) -> Tensor:
    return distances.kthvalue(k).values


def _truth(q: Tensor, rows: Tensor, k: int) -> Tensor:
    """Σ(q − v)² in float64, of the row that a float64 product finds to be the k-th."""
    q = q.double()
    bounds = [
        torch.addmm(part.double().square().sum(1), q, part.double().T, alpha=-2)
        for part in rows.split(50_000)
    ]
    kth = torch.cat(bounds, 1).kthvalue(k).indices
    return (q - rows[kth].double()).square().sum(1)


def _cpu_only(x: Tensor) -> None:
    if x.device.type != "cpu":
        raise ImportError(f"it serves CPU tensors here, these are on {x.device}")
