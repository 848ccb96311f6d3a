"""The ring of the wgmma kernels (csrc/cuda/ring.cuh) in the emulator, whole and with faults.

test_ring.py takes the protocol through every order of events; this is the source itself, in some.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from robustft import backends
from robustft.backends.cuda.launcher import _Emulator

from .build import EMULATOR, builder

pytestmark = pytest.mark.skipif(backends.emulating(), reason="needs no CUDA kernel")


class Kind(NamedTuple):
    """A ring's template arguments."""

    parts: int
    resident: bool
    apart: bool
    cluster: int

    def __str__(self) -> str:
        return ", ".join(str(x).lower() for x in self)


PAIR, APART = Kind(1, True, False, 2), Kind(1, True, True, 2)

# Of ring.cuh: what stands there, and what shall not do in its place.
FAULTS = {
    "half_of_the_bytes": ("TILE_SLICE / RINGS : (parts + with_own) * TILE_SLICE)",
                          "SHARE / 2 : (parts + with_own) * SHARE)"),
    "own_warps_alone": (
        "CLUSTER * RING_WARPS / RINGS);", "RING_WARPS / RINGS);",
        "if (threadIdx.x % 32 >= CLUSTER)", "if (int(threadIdx.x % 32) != block_in_cluster())",
    ),
    "no_barrier_at_the_start": ("cluster_barrier();", "__syncthreads();"),
    "no_wait_at_the_end": ("CLUSTER > 1 && s < stages", "false && s < stages"),
    "released_early": ("wgmma_wait<1>();", ""),
    "own_half_alone": ("bulk_copy_to_all<CLUSTER>(", "bulk_copy("),
}  # fmt: skip
# Of rings apart: a warpgroup that does not wait for the block's own tile.
OF_RINGS_APART = {"own_tile_not_awaited": ("barrier_wait(own_there, 0);", "")}


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> _Emulator:
    """Kernels of ring_kernels.cu, and of each fault under its name."""
    if builder.compiler() is None:
        pytest.skip("no C++ compiler is installed")
    folder = tmp_path_factory.mktemp("ring")
    kernels = EMULATOR / "ring_kernels.cu"
    sources = [kernels]
    for name, edits in (FAULTS | OF_RINGS_APART).items():
        ring = (builder.CUDA / "ring.cuh").read_text("utf-8")
        for before, after in zip(edits[::2], edits[1::2], strict=True):
            assert ring.count(before) == 1, name
            ring = ring.replace(before, after)
        (folder / name).mkdir()
        for text, file in ((ring, "ring.cuh"), (kernels.read_text("utf-8"), f"{name}.cu")):
            # One library holds them all.
            (folder / name / file).write_text(re.sub(r"\bRing\b", f"Ring_{name}", text), "utf-8")
        sources.append(folder / name / f"{name}.cu")
    return _Emulator(str(builder.build(folder / "kernels.so", sources)))


def tiles(x: Tensor) -> Tensor:
    """As csrc/cuda/tiles.cuh says: [n/128][width/64] blocks of 128 lines, chunks swizzled."""
    n, width = x.shape
    lines = x.view(n // 128, 128, width // 64, 8, 8).transpose(1, 2)
    chunks = torch.arange(8) ^ torch.arange(128)[:, None] % 8
    return lines.gather(3, chunks[:, :, None].expand_as(lines)).contiguous()


def wrong(
    card: _Emulator, source: str, kind: Kind, blocks: int, others: int, slices: int, stages: int,
    ranges: int = 1,
) -> bool:  # fmt: skip
    """Whether products are not those of whole numbers."""
    a, b = (torch.randint(-2, 3, (n * 128, slices * 64)).half() for n in (blocks, others))
    out = torch.full((blocks * 128, others * 128), torch.nan)
    stage = (kind.parts + (not kind.resident)) * 16384
    card.launch(
        source, f"products<{kind}>", (blocks, ranges), 384,
        (tiles(a), tiles(b), out, others, slices, stages),
        shared=kind.resident * slices * 16384 + stages * (stage + 32) + 16, cluster=kind.cluster,
    )  # fmt: skip
    return not torch.equal(out, a.float() @ b.float().T)


# A last step that lacks a part, fewer items than stages, ranges of which one is empty.
@pytest.mark.parametrize("order", [0, 1, 2, 3])
@pytest.mark.parametrize(
    ("kind", "blocks", "others", "slices", "stages", "ranges"),
    [
        (PAIR._replace(cluster=1), 2, 3, 2, 2, 1),
        (APART._replace(cluster=1), 1, 3, 3, 2, 1),
        (PAIR, 4, 3, 3, 4, 2),
        (APART, 4, 3, 3, 2, 2),
        (APART, 2, 2, 1, 5, 3),
        (PAIR._replace(parts=2), 2, 5, 1, 3, 1),
        (PAIR._replace(parts=2), 2, 1, 1, 4, 2),
        (PAIR._replace(parts=2, resident=False), 2, 3, 3, 2, 1),
    ],
    ids=str,
)
def test_products(
    card: _Emulator, order: int, kind: Kind, blocks: int, others: int, slices: int, stages: int,
    ranges: int,
) -> None:  # fmt: skip
    card.order(order)
    assert not wrong(card, "ring_kernels", kind, blocks, others, slices, stages, ranges)


@pytest.mark.parametrize(
    ("kind", "fault"),
    [(kind, fault) for kind in (PAIR, APART) for fault in FAULTS]
    + [(APART, fault) for fault in OF_RINGS_APART],
    ids=str,
)
def test_faults_are_found(card: _Emulator, kind: Kind, fault: str) -> None:
    """Some order of threads ends the launch with a message, or gives other numbers."""

    def found(order: int) -> bool:
        card.order(order)
        try:
            return wrong(card, fault, kind, 2, 3, 5, 3)
        except RuntimeError as error:
            return f"{fault}.cu" in str(error)

    assert any(map(found, range(20)))
