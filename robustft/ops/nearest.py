"""kth_distance and knn: the distance to the zero-shot-failure set of VRF (arXiv 2411.06966)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robustft.backends.tensors import sum_dtype
from robustft.errors import InputError, InputTypeError
from robustft.ops import _arrays, _checks
from robustft.ops._nearest_ranks import nearest_over_ranks
from robustft.ops._ranks import Ranks
from robustft.ops._register import register
from robustft.ops._resolve import resolve
from robustft.ops.bank import FeatureBank


@_arrays.answers_in_kind
def kth_distance(
    queries: Tensor,
    bank: FeatureBank | Tensor | None,
    k: int,
    *,
    squared: bool = True,
    group: Any = None,
    backend: str = "auto",
) -> Tensor:
    """The distance from each query to its k-th nearest bank row, exactly.

    Args:
        queries: [Q, D], float32, bfloat16, float16 or float64, any strides. 16-bit features are
            taken to float32 exactly; with float64 on either side all is float64.
        bank: a FeatureBank, or the rows [N, D]; on the queries' device. A FeatureBank may stay on
            the CPU for queries on a GPU, if the backend streams banks (triton, cuda).
        k: 1 … N.
        squared: Σ(q − v)², or its root.
        group: a torch.distributed.ProcessGroup over whose ranks the bank is spread: `bank` is this
            rank's share of it (None if it has none), `queries` are this rank's own, k counts among
            the rows of all. All ranks call together. None: one process.
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Returns: [Q], float32 (float64 for float64), no gradient. NaN for a query with NaN or Inf.
        A squared distance beyond the dtype's largest number is inf.

    Errors: InputError or InputTypeError for bad shapes, dtypes, devices, k or backend, and for bank
    rows with NaN or Inf (inside torch.compile, which cannot look, all distances are NaN instead).
    """
    if group is not None:
        distances, _ = _over_ranks(queries, bank, k, backend, Ranks(group))
        nearest = distances[:, -1].contiguous()
        return nearest if squared else nearest.sqrt_()
    queries, rows, packed, k, backend = _prepare(queries, bank, k, backend)
    distances = _kth_distance(queries, rows, packed, k, bool(squared), backend)
    return distances


@_arrays.answers_in_kind
def knn(
    queries: Tensor,
    bank: FeatureBank | Tensor | None,
    k: int,
    *,
    squared: bool = True,
    group: Any = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The k nearest bank rows of each query, exactly: (distances, indices), both [Q, k].

    Distances ascend; rows of equal squared distance come in the order of their indices (int64).
    A query with NaN or Inf has distances NaN and indices −1. `queries`, `bank`, `k`, `squared`,
    `group`, `backend`, dtypes and errors (InputError) are as in `kth_distance`; over ranks, rows
    are numbered in the order of the ranks.
    """
    if group is not None:
        distances, indices = _over_ranks(queries, bank, k, backend, Ranks(group))
        return (distances if squared else distances.sqrt_()), indices
    queries, rows, packed, k, backend = _prepare(queries, bank, k, backend)
    distances, indices = _knn(queries, rows, packed, k, bool(squared), backend)
    return distances, indices


def _over_ranks(
    queries: Tensor, bank: FeatureBank | Tensor | None, k: int, backend: str, ranks: Ranks
) -> tuple[Tensor, Tensor]:
    """([Q, k] squared distances ascending, [Q, k] indices) among the rows of all ranks."""
    _checks.matrix("queries", queries, rows="Q")
    k = _checks.integer("k", k)
    rows = bank.rows if isinstance(bank, FeatureBank) else bank
    dtype = sum_dtype(queries) if rows is None else sum_dtype(queries, rows)
    count = 0 if rows is None else len(rows)

    def search(some: Tensor, nearest: int) -> tuple[Tensor, Tensor]:
        return knn(some, bank, nearest, backend=backend)

    return nearest_over_ranks(search, queries.detach().to(dtype), count, k, ranks)


def _prepare(
    queries: Tensor, bank: FeatureBank | Tensor | None, k: int, backend: str
) -> tuple[Tensor, Tensor, list[Tensor], int, str]:
    """Checked queries and rows of one dtype, what is packed of the rows (may be nothing), k, and
    the backend: the one that a bank has packed for, as it was chosen there."""
    _checks.matrix("queries", queries, rows="Q")
    if isinstance(bank, FeatureBank):
        rows = bank.rows
    elif isinstance(bank, Tensor):
        rows = _checks.matrix("bank", bank, rows="N").detach()
    else:
        raise InputTypeError(
            f"bank: got {type(bank).__name__}, expected a FeatureBank or a torch.Tensor"
        )
    if queries.shape[1] != rows.shape[1]:
        raise InputError(f"queries: got width {queries.shape[1]}, expected {rows.shape[1]}")
    k = _checks.integer("k", k)
    if not 1 <= k <= rows.shape[0]:
        raise InputError(f"k: got {k}, expected 1 to {rows.shape[0]}, the number of bank rows")
    dtype = sum_dtype(queries, rows)
    packed: list[Tensor] = []
    streams = False
    if isinstance(bank, FeatureBank):
        if rows.dtype == dtype:
            backend, streams, packed = bank.prepared(backend, queries)
    elif not torch.compiler.is_compiling():
        _checks.finite_rows("bank", rows)
    if not (streams and rows.device.type == "cpu"):
        _checks.same_device("queries", queries, rows)
    backend = resolve("nearest", queries, backend, dtype)
    return queries.detach().to(dtype), rows.to(dtype), packed, k, backend


def _fake_kth_distance(queries: Tensor, *_: Any) -> Tensor:
    return queries.new_empty(queries.shape[0])


def _fake_knn(queries: Tensor, rows: Tensor, packed: Any, k: int, *_: Any) -> Any:
    shape = (queries.shape[0], k)
    return queries.new_empty(shape), queries.new_empty(shape, dtype=torch.int64)


# queries and rows have one dtype, float32 or float64. What `packed` holds is the backend's own
# affair (its `pack`); an empty list means that nothing was prepared.
_SEARCH = ("Tensor queries", "Tensor rows", "Tensor[] packed", "int k", "bool squared")
_kth_distance = register("nearest", "kth_distance", _SEARCH, "Tensor", _fake_kth_distance)
_knn = register("nearest", "knn", _SEARCH, "(Tensor, Tensor)", _fake_knn)
