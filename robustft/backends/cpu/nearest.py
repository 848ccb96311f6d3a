"""kth_distance and knn on the CPU (csrc/cpu/nearest)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from robustft import _native
from robustft.backends.cpu.pointers import empty
from robustft.backends.tensors import Layout, expect_search, unit_stride

# Instruction sets differ in what they multiply and in the width of a panel.
FORMAT = _native.nearest_format()

_FEW = 4  # queries that are compared with all rows sooner than a bank is packed


class Statistics(NamedTuple):
    """What searches on the CPU met since the process began."""

    queries: int
    checked: int  # distances taken exactly
    retried: int  # sweeps of a query beyond its first
    scanned: int  # queries compared with every row of a packed bank


def statistics() -> Statistics:
    """How often screening left more than it should: differences of two calls tell of a search."""
    return Statistics(*_native.nearest_counts())


def layout(rows: Tensor) -> Layout:
    """What `pack` makes of these rows: dtypes and shapes."""
    panels, words, columns = _native.nearest_layout(*rows.shape)
    return [
        (torch.float32, (rows.shape[1],)),
        (torch.int32, (panels, words, columns)),
        (torch.int32, (panels, 4, columns)),
    ]


def pack(rows: Tensor) -> list[Tensor]:
    """The bank's mean (NaN if a row is not finite), its rounded rows in panels, and what is known
    of each row (float32 bits, and an integer)."""
    (rows,) = unit_stride(rows)
    count, dim = rows.shape
    mean, packed, constants = (empty(shape, dtype) for dtype, shape in layout(rows))
    finite = _native.nearest_pack(
        rows.data_ptr(),
        rows.stride(0),
        count,
        dim,
        torch.get_num_threads(),
        mean.data_ptr(),
        packed.data_ptr(),
        constants.data_ptr(),
    )
    if not finite:
        mean.fill_(torch.nan)
    return [mean, packed, constants]


def kth_distance(
    queries: Tensor, rows: Tensor, packed: list[Tensor], k: int, squared: bool
) -> Tensor:
    """[Q]: the distance from each query to its k-th nearest row."""
    _check(queries, rows, packed, k)
    distances = queries.new_empty(len(queries))
    _find(queries, rows, packed, k, distances, None)
    return distances if squared else distances.sqrt_()


def knn(
    queries: Tensor, rows: Tensor, packed: list[Tensor], k: int, squared: bool
) -> tuple[Tensor, Tensor]:
    """([Q, k] distances ascending, [Q, k] int64 indices)."""
    _check(queries, rows, packed, k)
    distances = queries.new_empty((len(queries), k))
    indices = queries.new_empty((len(queries), k), dtype=torch.int64)
    _find(queries, rows, packed, k, distances, indices)
    return (distances if squared else distances.sqrt_()), indices


def _check(queries: Tensor, rows: Tensor, packed: list[Tensor], k: int) -> None:
    """InputError for what the kernel, which reads raw memory, must not be given."""
    expect_search(queries, rows, packed, k, layout, on_cpu=True)


def _find(
    queries: Tensor,
    rows: Tensor,
    packed: list[Tensor],
    k: int,
    distances: Tensor,
    indices: Tensor | None,
) -> None:
    queries, rows = unit_stride(queries, rows)
    count, dim = rows.shape
    if not packed and len(queries) > _FEW:
        packed = pack(rows)
    if packed:
        mean, panels, constants = (part.contiguous() for part in packed)
        addresses = mean.data_ptr(), panels.data_ptr(), constants.data_ptr()
    else:
        mean = rows.sum(0)  # NaN if a row is
        addresses = mean.data_ptr(), 0, 0
    _native.nearest_find(
        rows.data_ptr(),
        rows.stride(0),
        count,
        dim,
        *addresses,
        queries.data_ptr(),
        queries.stride(0),
        len(queries),
        k,
        torch.get_num_threads(),
        distances.data_ptr(),
        0 if indices is None else indices.data_ptr(),
    )
