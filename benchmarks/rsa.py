"""rsa: the correlation of all pairwise distances of two sets of N features.

The floor is the product's rate: half of an N×N product a side, so 2·N²·D operations in all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks import probes
from benchmarks.harness import Call, Case, Factory, compiled, robustft
from robustft.ops import rsa

SHAPE = "NxD"
QUICK = [(200, 64)]
DEFAULT = [(2000, 512), (20_000, 512)]
FULL = [(2000, 512), (5000, 512), (20_000, 512), (20_000, 768)]
CHECKED = 2000  # rows: beyond, a provider's error is that on the first of them
TILE = 2048  # rows of a block of the plain torch provider


def cases(shapes: list[tuple[int, ...]], device: str, quick: bool) -> Iterator[Case]:
    for rows, dim in shapes:
        for metric in ("euclidean", "cosine"):
            yield _case(rows, dim, metric, "pearson", device)
        yield _case(rows, dim, "euclidean", "spearman", device)


def pair(rows: int, dim: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """Two sets of features, [B, D], of which one is the other with noise."""
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, generator=generator)

    mean = random(dim)
    a = mean + random(rows, dim)
    b = a + 0.5 * random(rows, dim)
    return a.to(dtype), b.to(dtype)


def ours(
    a: Tensor, b: Tensor, backend: str, metric: str = "euclidean", method: str = "pearson"
) -> Callable[[], list[Tensor]]:
    """A call of rsa with a backend."""
    return lambda: [rsa(a, b, metric=metric, method=method, backend=backend)]


def _case(rows: int, dim: int, metric: str, method: str, device: str) -> Case:
    a, b = pair(rows, dim, torch.float32, device)
    few = a[:CHECKED], b[:CHECKED]

    def providers(a: Tensor, b: Tensor) -> dict[str, Factory]:
        found: dict[str, Factory] = {}
        if method == "pearson":
            found["torch eager"] = lambda: _torch(_tile, a, b, metric)
            found["torch.compile"] = lambda: _torch(compiled(_tile), a, b, metric)
        own = robustft("rsa", device, torch.float32, lambda name: ours(a, b, name, metric, method))
        return found | own

    # A strip of the product is enough to know its rate.
    strip = a[:: max(1, rows // TILE)][:TILE]
    return Case(
        op="rsa",
        variant=f"{metric}, {method}",
        mode="forward",
        shape=f"{rows}x{dim}",
        dtype="float32",
        amount=2.0 * rows * rows * dim,
        unit="GFLOP/s",
        probes=probes.products(strip, a, torch.float32),
        providers=providers(a, b),
        checks=providers(*few) if rows > CHECKED else {},
        truth=lambda: [_truth(*few, metric, method)],
        error_on="all" if rows <= CHECKED else f"its call on the first {CHECKED} rows",
    )


def _torch(tile: Callable[..., Tensor], a: Tensor, b: Tensor, metric: str) -> Call:
    """Blocks of distances in float32 and five sums over them, added up in float64.

    The whole square is walked: each pair comes twice, and the zeros of the diagonal are counted
    out of n.
    """

    def call() -> list[Tensor]:
        x, y = ((v / v.norm(dim=1, keepdim=True)) if metric == "cosine" else v for v in (a, b))
        sums = torch.zeros(5, dtype=torch.float64, device=a.device)
        for i in range(0, len(x), TILE):
            for j in range(0, len(x), TILE):
                sums += tile(
                    x[i : i + TILE], x[j : j + TILE], y[i : i + TILE], y[j : j + TILE], metric
                )
        n = len(x) * (len(x) - 1)
        e, f, ee, ff, ef = sums
        return [(n * ef - e * f) / ((n * ee - e * e) * (n * ff - f * f)).sqrt()]

    return call


def _tile(x: Tensor, xs: Tensor, y: Tensor, ys: Tensor, metric: str) -> Tensor:
    if metric == "cosine":
        e, f = 1 - x @ xs.T, 1 - y @ ys.T
    else:
        e, f = torch.cdist(x, xs), torch.cdist(y, ys)
    return torch.stack([e.sum(), f.sum(), (e * e).sum(), (f * f).sum(), (e * f).sum()]).double()


def _truth(a: Tensor, b: Tensor, metric: str, method: str) -> Tensor:
    """From all distances in float64, each summed from differences."""
    pairs = []
    for x in (a.double(), b.double()):
        if metric == "cosine":
            d = torch.pdist(x / x.norm(dim=1, keepdim=True)).square() / 2
        else:
            d = torch.pdist(x)
        if method == "spearman":
            d = d.argsort().argsort().double()  # random features have no ties
        pairs.append(d)
    return torch.corrcoef(torch.stack(pairs))[0, 1]
