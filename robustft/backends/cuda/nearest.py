"""kth_distance and knn in CUDA C++ (csrc/cuda/nearest_*.cu), over backends/search/screening.py.

Halves lie in tiles, as shared memory wants them (csrc/cuda/nearest.cuh), so that a stage of the
screening kernels is one contiguous copy: a format of its own.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from robustft.backends.cuda import ring
from robustft.backends.cuda.device import card_of
from robustft.backends.cuda.launcher import launch
from robustft.backends.search import banks, interface, packing, screening
from robustft.backends.search.interface import RADIUS, Lists
from robustft.backends.search.packing import NORM, ROWS, Packed
from robustft.backends.simulation import emulating

FORMAT = "cuda-tiles-fp16-2"
STREAMS = True  # a bank on the host serves queries on a GPU

# The sm_90a kernel (wgmma, bulk copies) takes the place of the sm_80 one where it can. No card has
# run either; the second is the simpler.
USE_WGMMA = False

_SLICE = packing.COLUMNS  # halves of a row in a stage of the ring
_STAGE = ROWS * _SLICE * 2  # bytes of the bank's part of a stage
_NEARS = ROWS * 4  # bytes of a tile's near
_KEYS = 44 << 10  # bytes of cached keys: beside static arrays, what needs no opting in (48 KB)
_SELECT = 256  # threads of the blocks that take a query each
_LONG = 32  # steps of a block's range that make its start, a tile of queries, small
_WAVES = 16  # of blocks, at most: the last one may be part empty
# With wgmma 256 rows a step where three stages fit (D = 512), else 128 where four do (640), else
# the queries flow past as well. One stage is multiplied, one is being released, so fewer than three
# leave no time to fetch.
_WAYS = (ring.Way(2, True, 3), ring.Way(1, True, 4), ring.Way(2, False, 2))


class _Kernels(interface.SearchKernels):
    """The steps as kernels; what each computes stands in robustft/backends/search/interface.py."""

    def round_rows(self, x: Tensor, mean: Tensor, into: Packed, scaled: bool = False) -> None:
        count, width = into.halves.shape
        launch(
            "nearest_pack", "nearest::round_rows", (count // 8,), 256,
            (x, x.stride(0), *x.shape, mean, scaled, *into, count, width // _SLICE),
        )  # fmt: skip

    def plain(self, halves: Tensor, count: int, picked: Tensor | None = None) -> Tensor:
        width = halves.shape[1]
        if halves.device.type == "cpu" and not emulating():
            rows = torch.arange(count) if picked is None else picked
            return _plain_on_host(halves, rows)
        out = halves.new_empty((count, width))
        launch(
            "nearest_pack", "nearest::plain", (-(-count * width // (8 * 256)),), 256,
            (halves, picked, count, width // _SLICE, out),
        )  # fmt: skip
        return out

    def aim(
        self,
        products: Tensor,
        queries: Packed,
        sample: Tensor,
        rank: int,
        slack: float,
        aims: Tensor,
    ) -> None:
        count, padded = products.shape[1], aims.shape[1]
        cached = min(count, _KEYS // 4)
        launch(
            "nearest_select", "nearest::aim", (padded,), _SELECT,
            (products, products.stride(0), len(products), count, queries.numbers, padded,
             sample, sample.stride(0), rank, slack, aims, cached),
            shared=4 * cached,
        )  # fmt: skip

    def screen(
        self, queries: Packed, aims: Tensor, chunk: Packed, first_row: int, lists: Lists
    ) -> None:
        card = card_of(queries.halves.device)
        slices = queries.halves.shape[1] // _SLICE
        shape = _shape(len(lists.rows), slices, card.shared, USE_WGMMA and card.wgmma)
        tiles, query_tiles = len(chunk.halves) // ROWS, -(-len(lists.rows) // shape.queries)
        clusters, steps = -(-query_tiles // shape.cluster), -(-tiles * ROWS // shape.rows)
        splits = _splits(clusters, steps, card.processors // shape.cluster)
        launch(
            shape.source, shape.kernel, (clusters * shape.cluster, splits), shape.threads,
            (queries.halves, queries.numbers, aims, len(lists.rows), aims.shape[1], chunk.halves,
             chunk.numbers, chunk.numbers.stride(0), tiles, first_row, slices, lists.rows,
             lists.values, lists.counts, lists.rows.shape[1], shape.stages),
            shape.shared, shape.cluster,
        )  # fmt: skip

    def resolve(
        self, queries: Tensor, bank: Tensor, k: int, slack: float, every: bool, lists: Lists
    ) -> None:
        count, capacity = lists.rows.shape
        cached = min(capacity, _KEYS // 8)
        launch(
            "nearest_select", "nearest::resolve", (count,), _SELECT,
            (queries, queries.shape[1], bank, bank.stride(0), k, slack, every, *lists, capacity,
             cached),
            shared=8 * cached,
        )  # fmt: skip

    def exact(self, queries: Tensor, rows: Tensor, first_row: int, lists: Lists) -> None:
        count, capacity = lists.rows.shape
        words = (x for m in (queries, rows) for x in (m.data_ptr() // 4, m.stride(0)))
        aligned = all(word % 4 == 0 for word in words)
        # For few queries, blocks enough for two a processor.
        share = min(-(-2 * card_of(rows.device).processors // count), -(-capacity // 8))
        launch(
            "nearest_select", "nearest::exact", (count, share), _SELECT,
            (queries, queries.stride(0), rows, rows.stride(0), first_row, *rows.shape, lists.rows,
             lists.values, lists.kept, capacity, aligned),
        )  # fmt: skip

    def select(
        self, queries: Tensor, aims: Tensor, lists: Lists, kth: Tensor, safe: Tensor
    ) -> None:
        launch(
            "nearest_select", "nearest::select", (len(kth),), _SELECT,
            (queries[NORM], aims[RADIUS], lists.values, lists.counts, lists.kept, lists.ranks,
             lists.rows.shape[1], kth, safe),
        )  # fmt: skip


_STEPS = _Kernels()


layout = packing.layout


def pack(rows: Tensor) -> list[Tensor]:
    """[mean [D], halves [n, d] float16 in tiles, numbers [6, n] float32] (packing.Packed).

    On the rows' device; rows on the host are packed by the GPU.
    """
    device = rows.device
    if device.type == "cpu" and not emulating():
        device = torch.device("cuda")
    return banks.pack(rows, _STEPS, device)


def kth_distance(
    queries: Tensor, rows: Tensor, packed: list[Tensor], k: int, squared: bool
) -> Tensor:
    """[Q]: the distance from each query to its k-th nearest row."""
    return screening.kth_distance(queries, rows, _aligned(packed), k, squared, _STEPS)


def knn(
    queries: Tensor, rows: Tensor, packed: list[Tensor], k: int, squared: bool
) -> tuple[Tensor, Tensor]:
    """([Q, k] distances ascending, [Q, k] int64 indices)."""
    return screening.knn(queries, rows, _aligned(packed), k, squared, _STEPS)


def _plain_on_host(halves: Tensor, rows: Tensor) -> Tensor:
    """_Kernels.plain of a bank that stays on the host."""
    count, width = halves.shape
    line = rows % ROWS
    tiles = halves.view(count // ROWS, width // _SLICE, ROWS, 8, _SLICE // 8)
    lines = tiles[rows // ROWS, :, line]  # [m, slices, 8, 8], chunks swizzled
    order = torch.arange(8) ^ line[:, None] % 8
    return lines.gather(2, order[:, None, :, None].expand_as(lines)).view(len(rows), width)


def _aligned(packed: list[Tensor]) -> list[Tensor]:
    """At multiples of 16 bytes, as copies want them: a mapped file's tensors may lie anywhere."""
    return [part if part.data_ptr() % 16 == 0 else part.clone() for part in packed]


class _Shape(NamedTuple):
    """A screening kernel and its launch."""

    source: str
    kernel: str
    threads: int
    queries: int  # of a block
    rows: int  # of a step of its range
    stages: int
    shared: int  # bytes
    cluster: int = 1  # blocks, of neighbouring tiles of queries


@functools.cache
def _shape(count: int, slices: int, shared: int, wgmma: bool) -> _Shape:
    """The largest tile of queries that shared memory holds beside two stages, and as many stages as
    fit; else a stage brings its part of the queries.

    With 227 KB (sm_90) 128 queries stay up to D = 768, with 163 KB (sm_80) up to 512; with 99 KB
    (sm_89) 64 do. Up to 64 queries the time is that of reading the bank.
    """
    if wgmma and count > 64:
        return _wgmma(count, slices, shared)
    for queries in (128, 64) if count > 64 else (64,):
        for stages in (6, 4, 3, 2):
            needed = slices * queries * _SLICE * 2 + stages * _STAGE + _slots(stages, slices)
            if needed <= shared:
                kernel = f"nearest::screen<{queries}, true>"
                return _Shape("nearest_screen", kernel, 256, queries, ROWS, stages, needed)
    for stages in (6, 4, 3):  # three fit in 99 KB
        needed = 2 * stages * _STAGE + _slots(stages, slices)
        if needed <= shared:
            break
    return _Shape("nearest_screen", "nearest::screen<128, false>", 256, 128, ROWS, stages, needed)


def _wgmma(count: int, slices: int, shared: int) -> _Shape:
    cluster = ring.cluster_of(-(-count // ring.TILE))
    of = ring.fit(_WAYS, slices, shared)
    rows = of.parts * ROWS
    return _Shape(
        "nearest_wgmma", f"nearest::screen_wgmma<{rows}, {str(of.resident).lower()}, {cluster}>",
        ring.THREADS, ring.TILE, rows, of.stages, of.shared, cluster,
    )  # fmt: skip


def _slots(stages: int, slices: int) -> int:
    """Bytes of near of the tiles that may be under way at once."""
    return ((stages - 2) // slices + 2) * _NEARS


def _splits(query_tiles: int, steps: int, processors: int) -> int:
    """Parts of the bank, for tiles of queries (or clusters of them, and of processors): waves of
    blocks as full as can be, ranges as long as that allows."""
    waves = min(max(query_tiles * steps // (processors * _LONG), 1), _WAVES)
    return min(max(waves * processors // query_tiles, 1), steps)
