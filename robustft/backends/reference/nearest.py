"""The k nearest bank rows of each query (VRF, Zhu et al., NeurIPS 2024, arXiv 2411.06966).

    d²(q, v) = Σ (q − v)²,   sorted ascending, equal distances by row index

`nearest` is the definition. `kth_distance` and `knn` are what backend="reference" runs, exactly, in
blocks: a float32 product screens all rows, the survivors' distances are computed as the definition
has them, and a certificate shows that no other row can belong to the answer.

Screening. With q̃ = q − μ, ṽ = v − μ (μ the bank's mean: distances stay, rounding shrinks), u the
unit roundoff and c = (D + 16)·u, rounding in q̃, ṽ, the norms and the product of length D, in any
order of summation, moves |q̃|² + |ṽ|² − 2<q̃, ṽ> by at most 2c·(|q̃|² + |ṽ|²). So

    L(q, v) = (1 − 2c)(|q̃|² + |ṽ|²) − 2<q̃, ṽ>  ≤  d²(q, v)

and the rows kept are those of smallest L, some more than k. Every other row has an L at least as
large as the largest kept: if that exceeds the k-th distance found, the answer is exact. If not
(many rows nearly as far as the k-th, or an overflow), the query is compared with all rows.

The distances of the rows kept are summed in float64 and rounded once, so near-duplicates keep their
digits and no block size changes a bit. A query or bank with NaN or Inf gives NaN and index −1.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from robustft.backends.tensors import Layout, expect_search

# What `pack` makes. Another name means another format, and a saved bank is packed anew.
FORMAT = "centred-1"

# Bytes that the blocks of a search may take, roughly: no [Q, N] matrix exists.
BUDGET = 64 << 20

_QUERIES = 1024  # in a block: enough for the product to run at full speed


def nearest(queries: Tensor, rows: Tensor, k: int, squared: bool = True) -> tuple[Tensor, Tensor]:
    """(distances [Q, k] ascending, indices [Q, k]) by the definition, from one [Q, N, D] tensor."""
    distances = (queries[:, None] - rows[None]).square().sum(-1)
    distances, indices = distances.sort(dim=1, stable=True)
    distances, indices = distances[:, :k], indices[:, :k]
    return (distances if squared else distances.sqrt()), indices


def layout(rows: Tensor) -> Layout:
    """What `pack` makes of these rows: dtypes and shapes."""
    return [(rows.dtype, (rows.shape[1],)), (rows.dtype, (rows.shape[0],))]


def pack(rows: Tensor) -> list[Tensor]:
    """What a search wants to know of a bank [N, D]: its mean [D], and |v − mean|² [N]."""
    mean = rows.mean(0, dtype=torch.float64).to(rows.dtype)
    norms = rows.new_empty(len(rows))
    for block in _slices(len(rows), BUDGET // _bytes(rows)):
        norms[block] = (rows[block] - mean).square().sum(1)
    return [mean, norms]


def kth_distance(
    queries: Tensor, rows: Tensor, packed: list[Tensor], k: int, squared: bool
) -> Tensor:
    """[Q]: the distance from each query to its k-th nearest row."""
    found = torch.cat([distances[:, -1] for distances, _ in _search(queries, rows, packed, k)])
    return found if squared else found.sqrt()


def knn(
    queries: Tensor, rows: Tensor, packed: list[Tensor], k: int, squared: bool
) -> tuple[Tensor, Tensor]:
    """([Q, k] distances ascending, [Q, k] int64 indices)."""
    blocks = list(_search(queries, rows, packed, k))
    distances = torch.cat([part for part, _ in blocks])
    indices = torch.cat([part for _, part in blocks])
    return (distances if squared else distances.sqrt()), indices


def _search(
    queries: Tensor, rows: Tensor, packed: list[Tensor], k: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Squared distances and indices [b, k], block of queries by block of queries."""
    expect_search(queries, rows, packed, k, layout)
    mean, norms = packed or pack(rows)
    keep = min(len(rows), k + max(32, k // 4))
    bank_bad = ~mean.isfinite().all()
    for block in _slices(len(queries), min(_QUERIES, BUDGET // (64 * keep))):
        q = queries[block]
        bad = ~q.isfinite().all(1) | bank_bad
        kept, outside = _screen(q, rows, mean, norms, keep)
        distances, indices = _smallest(_distances(q, rows, kept), kept, k)
        if keep < len(rows):
            tiny = torch.finfo(q.dtype).tiny * q.shape[1]
            certain = outside * (1 - 8 * _roundoff(q.dtype)) - tiny > distances[:, -1]
            doubtful = (~certain & ~bad).nonzero()[:, 0]
            for some in _slices(len(doubtful), 16):
                part = doubtful[some]
                distances[part], indices[part] = _search_all(q[part], rows, k)
        yield (
            distances.masked_fill(bad[:, None], float("nan")),
            indices.masked_fill(bad[:, None], -1),
        )


def _screen(
    q: Tensor, rows: Tensor, mean: Tensor, norms: Tensor, keep: int
) -> tuple[Tensor, Tensor]:
    """Indices [b, keep], ascending, of the rows of smallest L, and the largest L among them."""
    if keep == len(rows):
        return torch.arange(keep, device=q.device).expand(len(q), -1), q.new_zeros(len(q))
    error = 2 * _product_error(q)
    tiny = torch.finfo(q.dtype).tiny * q.shape[1]  # what underflow can take from a sum
    q = q - mean
    q_norms = (1 - error) * q.square().sum(1, keepdim=True) - tiny
    lower, kept = _nothing(q)
    for block in _slices(len(rows), BUDGET // (16 * max(len(q), q.shape[1]))):
        bounds = q_norms + (1 - error) * norms[block]
        bounds.addmm_(q, (rows[block] - mean).T, alpha=-2)
        # After an overflow nothing is known of the distance.
        bounds.nan_to_num_(nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)
        best = bounds.topk(min(keep, bounds.shape[1]), largest=False, sorted=False)
        lower = torch.cat([lower, best.values], 1)
        kept = torch.cat([kept, best.indices + block.start], 1)
        if lower.shape[1] > keep:
            best = lower.topk(keep, largest=False, sorted=False)
            lower, kept = best.values, kept.gather(1, best.indices)
    return kept.sort(1).values, lower.amax(1)


def _search_all(q: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k smallest squared distances to all rows, and their indices."""
    distances, indices = _nothing(q)
    for block in _slices(len(rows), BUDGET // (32 * len(q))):
        new = torch.arange(len(rows), device=q.device)[block].expand(len(q), -1)
        # Sorting is stable and earlier blocks come first: equal distances stay in index order.
        distances, indices = _smallest(
            torch.cat([distances, _distances(q, rows, new)], 1), torch.cat([indices, new], 1), k
        )
    return distances, indices


def _distances(q: Tensor, rows: Tensor, indices: Tensor) -> Tensor:
    """Σ (q − v)² for the rows named by `indices` [b, m], summed in float64."""
    out = q.new_empty(indices.shape)
    limit = BUDGET // (24 * q.shape[1])
    for columns in _slices(indices.shape[1], limit):
        width = min(limit, indices.shape[1])
        for block in _slices(len(q), limit // max(1, width)):
            v = rows[indices[block, columns]].double()
            out[block, columns] = v.sub_(q[block, None].double()).square_().sum(-1).to(q.dtype)
    return out


def _smallest(distances: Tensor, indices: Tensor, k: int) -> tuple[Tensor, Tensor]:
    distances, order = distances.sort(dim=1, stable=True)
    return distances[:, :k], indices.gather(1, order[:, :k])


def _nothing(q: Tensor) -> tuple[Tensor, Tensor]:
    """Values and indices [b, 0], to be grown block by block."""
    empty = q.new_empty((len(q), 0))
    return empty, empty.long()


def _product_error(q: Tensor) -> float:
    """c of the module's docstring, with the precision that torch is set to for its products."""
    c = (q.shape[1] + 16) * _roundoff(q.dtype)
    settings = torch.backends.cuda if q.device.type == "cuda" else torch.backends.mkldnn
    if q.dtype == torch.float32 and settings.matmul.fp32_precision not in ("none", "ieee"):
        c += 2.0**-7  # TF32 or bfloat16 operands: both are rounded, by 2^-9 at most
    return c


def _roundoff(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def _bytes(rows: Tensor) -> int:
    """Of the temporaries that one row of a bank needs."""
    return 2 * rows.shape[1] * rows.element_size()


def _slices(length: int, step: int) -> Iterator[slice]:
    step = max(1, step)
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))
