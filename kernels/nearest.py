"""The steps of the nearest search in Triton; robustft.backends.search.screening says what and why.

Kernels: nearest_packing.py (round_rows), nearest_tiles.py (screen_tiles) and nearest_lists.py
(aim_rows, resolve_rows, exact_rows, select_rows); here they are launched.

All sizes are run-time arguments that are not specialised: other Q, N or k compile nothing anew.

Pointers: q, v (or halves) [n, width] float16; q_numbers, v_numbers (q, v where a kernel reads no
halves) [6, n] and aims [3, n] float32, whose fields lie q_field_stride or v_field_stride apart;
lists, values, upper [queries, capacity]; counts, kept, ranks [queries] int32. i numbers queries, j
or row bank rows; query_mask and row_mask say which exist, slots are offsets into the lists.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from robustft.backends import simulation
from robustft.backends.search import banks, interface, packing, screening
from robustft.backends.search.interface import Lists
from robustft.backends.search.packing import Packed
from robustft.kernels.configs import bucket, config
from robustft.kernels.launch import Launch, planned
from robustft.kernels.nearest_lists import aim_rows, exact_rows, resolve_rows, select_rows
from robustft.kernels.nearest_packing import round_rows
from robustft.kernels.nearest_tiles import screen_tiles

FORMAT = packing.FORMAT
STREAMS = True  # a bank on the host serves queries on a GPU


# The launches, planned once for the integers that they take. R queries a program: 1, and 32 in the
# interpreter, where programs are slow.


@planned
def _plan(
    function: Any, device: torch.device, programs: int, *numbers: int, **constants: Any
) -> Launch:
    """device: a part of the key, for a kernel is compiled for one. All tensors are float32, or of
    the one dtype that Packed and Lists say."""
    return Launch(function, (programs,), *numbers, **constants)


class _Triton(interface.SearchKernels):
    def round_rows(self, x: Tensor, mean: Tensor, into: Packed, scaled: bool = False) -> None:
        rows, width = into.halves.shape
        r = 32 if x.device.type == "cpu" else 4
        launch = _plan(
            round_rows, x.device, rows // r, x.stride(0), into.numbers.stride(0), *x.shape, width,
            SCALED=scaled, R=r, BLOCK_K=128, num_warps=4,
        )  # fmt: skip
        launch(x, mean, *into)

    def aim(
        self,
        products: Tensor,
        queries: Packed,
        sample: Tensor,
        rank: int,
        slack: float,
        aims: Tensor,
    ) -> None:
        count, n = products.shape
        block, r = min(4096, bucket(n)), _together(products)
        launch = _plan(
            aim_rows, products.device, len(queries.halves) // r, queries.numbers.stride(0),
            sample.stride(0), count, n, rank, R=r, BLOCK=block, num_warps=max(1, block // 256),
        )  # fmt: skip
        launch(products, queries.numbers, sample, aims, floats=(slack,))

    def screen(
        self, queries: Packed, aims: Tensor, chunk: Packed, first_row: int, lists: Lists
    ) -> None:
        count, capacity = lists.rows.shape
        rows, width = chunk.halves.shape
        options = config("nearest", chunk.halves.device, torch.float16, width)
        tiles = triton.cdiv(count, options["BLOCK_M"]) * triton.cdiv(rows, options["BLOCK_N"])
        launch = _plan(
            screen_tiles, chunk.halves.device, tiles, queries.numbers.stride(0),
            chunk.numbers.stride(0), count, rows, width, first_row, capacity, **options,
        )  # fmt: skip
        launch(*queries, aims, *chunk, *lists[:3])

    def resolve(
        self, queries: Tensor, bank: Tensor, k: int, slack: float, every: bool, lists: Lists
    ) -> None:
        count, capacity = lists.rows.shape
        block, r = min(1024, bucket(capacity)), _together(bank)
        launch = _plan(
            resolve_rows, bank.device, triton.cdiv(count, r), queries.stride(0), bank.stride(0),
            count, k, capacity, EVERY=every, R=r, BLOCK=block, num_warps=max(1, block // 256),
        )  # fmt: skip
        upper = torch.empty_like(lists.values)
        launch(queries, bank, lists.rows, lists.values, upper, *lists[2:], floats=(slack,))

    def exact(self, queries: Tensor, rows: Tensor, first_row: int, lists: Lists) -> None:
        count, capacity = lists.rows.shape
        chunk, splits = (64, 1) if rows.device.type == "cpu" else (8, _splits(rows.device, count))
        launch = _plan(
            exact_rows, rows.device, count * splits, queries.stride(0), rows.stride(0), first_row,
            *rows.shape, capacity, splits,
            BLOCK_C=chunk, BLOCK_K=min(128, bucket(rows.shape[1])), num_warps=4,
        )  # fmt: skip
        launch(queries, rows, lists.rows, lists.values, lists.kept)

    def select(
        self, queries: Tensor, aims: Tensor, lists: Lists, kth: Tensor, safe: Tensor
    ) -> None:
        count, capacity = lists.rows.shape
        r = _together(queries)
        launch = _plan(
            select_rows, queries.device, triton.cdiv(count, r), queries.stride(0), count, capacity,
            R=r, BLOCK=256, num_warps=1,
        )  # fmt: skip
        launch(lists.values, *lists[2:], queries, aims, kth, safe)


_STEPS = _Triton()


layout = packing.layout


def pack(rows: Tensor) -> list[Tensor]:
    """[mean [D], halves, numbers] on the rows' device; rows on the host are packed by the GPU."""
    device = rows.device
    if device.type == "cpu" and not simulation.interpreting():
        device = torch.device("cuda")
    return banks.pack(rows, _STEPS, device)


def kth_distance(
    queries: Tensor, rows: Tensor, packed: list[Tensor], k: int, squared: bool
) -> Tensor:
    """[Q]: the distance from each query to its k-th nearest row."""
    return screening.kth_distance(queries, rows, packed, k, squared, _STEPS)


def knn(
    queries: Tensor, rows: Tensor, packed: list[Tensor], k: int, squared: bool
) -> tuple[Tensor, Tensor]:
    """([Q, k] distances ascending, [Q, k] int64 indices)."""
    return screening.knn(queries, rows, packed, k, squared, _STEPS)


def _together(x: Tensor) -> int:
    return 32 if x.device.type == "cpu" else 1


def _splits(device: torch.device, queries: int) -> int:
    """Programs a query, so that few queries fill the card."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, 4 * processors // queries)
