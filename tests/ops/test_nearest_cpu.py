"""What only the search of the cpu backend can get wrong: rows where it does not expect them, and
screening sums that float32 rounds by more than the distances."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from robustft.backends.cpu import nearest

pytestmark = pytest.mark.usefixtures("native")

# The panels of a block of 16, by what sees them: a fourth of all is sampled, then they are swept in
# three stages.
PLACES = {
    "sampled": (4, 8, 12),
    "swept first and sampled": (0,),
    "swept first": (1,),
    "swept second": (2, 3, 5),
    "swept last": (6, 7, 9, 10, 11, 13, 14, 15),
}


def search(queries: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Squared distances [Q, k] found, and the true ones, both in float64."""
    packed = nearest.pack(rows)
    found, indices = nearest.knn(queries, rows, packed, k, True)
    kth = nearest.kth_distance(queries, rows, packed, k, True)
    assert torch.equal(kth, found[:, -1])
    by_index = (rows[indices].double() - queries.double()[:, None]).square().sum(-1)
    torch.testing.assert_close(found.double(), by_index, rtol=1e-6, atol=1e-12)
    distances = torch.stack([(rows.double() - q.double()).square().sum(1) for q in queries])
    return found.double(), distances.sort(1).values[:, :k]


@pytest.mark.parametrize(("near", "others"), list(itertools.permutations(PLACES, 2)))
def test_near_rows_may_lie_where_one_stage_alone_looks(near: str, others: str) -> None:
    from robustft import _native

    count, dim, k = 8209, 16, 100
    panels = _native.nearest_layout(count, dim)[0]
    assert panels >= 16 * 16  # swept in stages
    # Row p + l·panels lies in panel p.
    panel = torch.arange(count) % panels % 16
    squares = torch.full((count,), 9.0)
    seen = torch.isin(panel, torch.tensor((0, 4, 8, 12))).nonzero().flatten()
    squares[seen[torch.randperm(len(seen))[:60]]] = 1.35
    for place, parts in ((near, ((30, 1.0), (75, 1.3))), (others, ((100, 1.05),))):
        there = torch.isin(panel, torch.tensor(PLACES[place])).nonzero().flatten()
        chosen = there[torch.randperm(len(there))]
        for number, square in parts:
            squares[chosen[:number]] = square
            chosen = chosen[number:]
    directions = torch.nn.functional.normalize(torch.randn(count, dim).double(), dim=1)
    rows = (directions * squares[:, None].sqrt()).float()
    found, truth = search(torch.zeros(1, dim), rows, k)
    torch.testing.assert_close(found, truth, rtol=1e-6, atol=0)


@pytest.mark.parametrize("size", [20, 60, 200, 600, 2000])
def test_distances_far_below_the_rounding_of_a_screening_sum(size: int) -> None:
    # Integers, so that int8 holds the rows and the distances are exact; each row's negative makes
    # the mean 0. |row|² is 1.3e8: float32 rounds to multiples of 8, and a chain of sums by more.
    dim, half, k = 8192, 512, 20
    signs = torch.randint(0, 2, (dim,)) * 2.0 - 1
    base = torch.rand(4, dim) < 0.3
    base[:, :8] = False  # some stay 127 in every row
    masks = base[torch.arange(half) % 4]
    for row in masks:
        flipped = 8 + torch.randperm(dim - 8)[: size + int(torch.randint(0, size, ()))]
        row[flipped] = ~row[flipped]
    rows = (127 - masks.float()) * signs
    queries = (127 - base.float()) * signs
    found, truth = search(queries, torch.cat([rows, -rows]), k)
    assert torch.equal(found, truth)


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(isa: str) -> None:
    from robustft import _native

    if isa not in _native.isas():
        pytest.skip(f"this processor or build does not run {isa}")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            __file__,
            "-k",
            "stage_alone or rounding or room_for",
        ],
        env=os.environ | {"ROBUSTFT_CPU_ISA": isa},
        check=True,
        timeout=300,
    )


@pytest.mark.parametrize("k", [3, 300])
def test_more_rows_pass_the_screen_than_a_block_has_room_for(k: int) -> None:
    """Half of the bank lies within 1e-3 of every query: what integers cannot tell apart is noted
    in a log, which fills before all queries have met a block."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(1, 16, generator=generator)
    rows = rows + 1e-4 * torch.randn(9001, 16, generator=generator)
    rows[::2] += 5 * torch.randn(4501, 16, generator=generator)
    found, truth = search(rows[1:1200:2] + 1e-5, rows, k)
    torch.testing.assert_close(found, truth, rtol=3e-7, atol=0)
