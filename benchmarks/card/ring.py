"""A timeline of the wgmma kernels of nearest and mpm_nce (csrc/cuda/ring.cuh): what share of the
tensor cores' rate they can reach, predicted from their instructions and the card's rates.

    python -m benchmarks ring [--l2 TB/S] [--latency CYCLES] [--alone]

One multiprocessor is followed: a link that brings stages one after the other, tensor cores that
multiply for one warpgroup at a time, schedulers that issue what follows the products: nearest's
tests, mpm_nce's exponentials, of which a scheduler starts one warp's in eight cycles. Each party
does the next thing as soon as what it waits for is there, as the ring's barriers have it
(tests/cuda/test_ring.py looks at their logic in every order). Of a cluster one block is followed,
and the other taken to do the same at the same time: half of a stage's rows is read from the cache
for each, and a stage is free once the other's warps have said so. Then the waves of blocks over the
card are counted; a card of 132 multiprocessors is taken to hold 66 clusters of two.

What is left out: instruction caches, bank conflicts and the rate of shared memory, the card's clock
under load, the first tile of queries or images, writes of ∂Z, other kernels, blocks of a cluster
that wait for each other because their tests differ. A measurement below the prediction is one of
these; above it, a wrong rate.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from robustft.backends import contrast
from robustft.backends.cuda import mpm_nce, nearest
from robustft.backends.cuda import ring as cuda_ring
from robustft.backends.search import plans

SLICE_BYTES = 128 * 64 * 2  # 128 rows of 64 halves
WARPGROUPS = 2


class Card(NamedTuple):
    """Of an H200: 989 TFLOP/s in float16 is 2,048 products a cycle on each multiprocessor."""

    processors: int = 132
    clock: float = 1.755e9  # Hz
    products: int = 2048  # a cycle and multiprocessor
    l2: float = 5.5e12  # bytes a second of the second-level cache, all multiprocessors together
    port: int = 64  # bytes a cycle that one multiprocessor can take, wherever they come from
    latency: int = 900  # cycles until a copy's bytes, or an answer, are there
    remote: int = 200  # cycles until an arrival is seen by another multiprocessor
    issue: float = 0.8  # instructions a cycle of one warp by itself

    @property
    def bytes_a_cycle(self) -> float:
        """That one multiprocessor gets of the cache."""
        return self.l2 / self.clock / self.processors


class Kernel(NamedTuple):
    """A kernel with a ring, at a width."""

    rows: int  # of a step, with 64 queries a warpgroup; mpm_nce: 128 texts with 128 images
    resident: bool  # queries, or images, stay; else 128 of them flow past with the rows
    stages: int
    slices: int
    test: int  # cycles of a scheduler for a warp's products of a step (tests/cuda/test_sass.py)
    cluster: int = 1  # blocks that fetch their stages together
    apart: bool = False  # each warpgroup has a ring of its own, of halves of the stages
    answers: int = 0  # of the card's memory that a warp waits for after its products of a step

    def fetching(self, card: Card) -> float:
        """Cycles that a stage takes of the cache's rate, or of the port's."""
        rows, own = self.rows // 128 * SLICE_BYTES, 0 if self.resident else SLICE_BYTES
        return max((rows / self.cluster + own) / card.bytes_a_cycle, (rows + own) / card.port)


TESTS = {128: 531, 256: 919}  # counted in the machine code for sm_90a


# Instructions of a tile that is not out of the ordinary, all around its products included, and
# exponentials: forward, backward.
CONTRAST = {"forward": (345, 64), "backward": (960, 128)}
_EXPONENTIAL = 8  # cycles of a scheduler for those of a warp


def contrast_kernel(dim: int, direction: str, cluster: int = 2, shared: int = 227 << 10) -> Kernel:
    """What a launch of mpm_nce takes at this width."""
    slices = -(-dim // 64)
    shape = mpm_nce.shape_of(torch.bfloat16, slices, shared, mpm_nce.KEPT[direction], cluster)
    instructions, exponentials = CONTRAST[direction]
    test = max(instructions, _EXPONENTIAL * exponentials)
    resident = "true" in shape.kind
    apart = resident and cluster == 2
    return Kernel(128, resident, shape.stages, slices, test, cluster, apart)


def contrast_predicted(
    images: int, texts: int, dim: int, direction: str, card: Card, alone: bool = False
) -> float:
    """Share of the tensor cores' rate of 2·B·C·D operations, in the launch of tiles alone.

    alone: no clusters.
    """
    if direction == "backward":  # by squares of a workspace, taken to be alike
        parts = contrast.squares(texts, images, 128, 256, 2)
        texts, images = (part[0].stop for part in parts)
    blocks, tiles = -(-images // 128), -(-texts // 128)
    cluster = 1 if alone else cuda_ring.cluster_of(blocks)
    of = contrast_kernel(dim, direction, cluster)
    clusters, places = -(-blocks // cluster), card.processors // cluster
    splits = mpm_nce.splits_of(clusters, tiles, places)
    # A block's images are fetched in the time of a tile, before they are multiplied.
    steps = -(-tiles // splits)
    rounds = -(-clusters * splits // places)
    full = blocks * tiles / (rounds * card.processors * (steps + of.resident))
    full *= images * texts * dim / (blocks * tiles * 128 * 128 * of.slices * 64)
    return busy(of, card, steps) * full


def kernel(dim: int, queries: int = 50_000, alone: bool = False, shared: int = 227 << 10) -> Kernel:
    """What a launch takes at this width, for so many queries. alone: no clusters."""
    slices = -(-dim // 64)
    shape = nearest._wgmma(1 if alone else queries, slices, shared)
    # At k = N/1,000 a warp lists a row or more in nearly every step, and waits for their slots.
    return Kernel(
        shape.rows, "true" in shape.kernel, shape.stages, slices, TESTS[shape.rows], shape.cluster,
        answers=1,
    )  # fmt: skip


def busy(of: Kernel, card: Card, steps: int = 64) -> float:
    """Share of the time in which the tensor cores multiply, over so many steps of one block."""
    product = 64 * of.rows * 64 / card.products  # cycles of a warpgroup's slice
    heard = card.remote if of.cluster > 1 else 0  # later, of the other block's warps
    # Who takes the stages of each ring.
    rings = [[w] for w in range(WARPGROUPS)] if of.apart else [[*range(WARPGROUPS)]]
    fetch = of.fetching(card) / len(rings)
    items = steps * of.slices
    released: list[list[float]] = [[] for _ in range(WARPGROUPS)]  # when one gave a stage back
    arrived: list[list[float]] = [[] for _ in rings]
    link = tensor = schedulers = 0.0
    clock = [0.0] * WARPGROUPS
    ended = [0.0] * WARPGROUPS  # of the last product of each
    done = [0] * WARPGROUPS

    def free(ring: int) -> float | None:
        """When the stage that a ring fills next is free; None where that is not known yet."""
        before = len(arrived[ring]) - of.stages
        if before < 0:
            return 0.0
        if len(arrived[ring]) == items or any(len(released[w]) <= before for w in rings[ring]):
            return None
        return max(released[w][before] for w in rings[ring]) + heard

    while min(done) < items:
        # The link serves first what is free first.
        while any((at := free(ring)) is not None for ring in range(len(rings))):
            at, ring = min((at, ring) for ring in range(len(rings))
                           if (at := free(ring)) is not None)  # fmt: skip
            link = max(link, at) + fetch
            arrived[ring].append(link + card.latency)
        # So do the tensor cores.
        able = [
            (max(clock[w], of_ring[done[w]]), w)
            for w in range(WARPGROUPS)
            if done[w] < len(of_ring := arrived[w if of.apart else 0])
        ]
        ready, who = min(able)
        item, start = done[who], max(ready, tensor)
        before, ended[who] = ended[who], start + product
        tensor = ended[who]
        clock[who] = max(ready, before)  # wgmma_wait<1>
        if item % of.slices:
            released[who].append(clock[who])
        if (item + 1) % of.slices == 0:
            clock[who] = ended[who]
            released[who].append(clock[who])
            # A warp a scheduler; both warpgroups' tests share it.
            schedulers = max(schedulers, clock[who]) + of.test
            clock[who] = max(clock[who] + of.test / card.issue, schedulers)
            clock[who] += of.answers * card.latency
        done[who] += 1
    return WARPGROUPS * items * product / max(clock)


def waves(queries: int, rows: int, of: Kernel, card: Card) -> float:
    """Share of the multiprocessors that have a block, over all waves of a search's launches: one a
    block of queries, for k a thousandth of the rows."""
    tries = plans.plans(rows, max(1, rows // 1000))
    size = tries[0].queries(queries, torch.device("cpu"), False, False) if tries else queries
    places, steps = card.processors // of.cluster, -(-rows // of.rows)
    used = 0.0  # times that every multiprocessor takes the whole bank
    for first in range(0, queries, size):
        tiles = -(-min(size, queries - first) // 128)
        clusters = -(-tiles // of.cluster)
        splits = nearest._splits(clusters, steps, places)
        used += math.ceil(clusters * splits / places) / splits
    return -(-queries // 128) / (used * card.processors)


def predicted(queries: int, rows: int, dim: int, card: Card, alone: bool = False) -> float:
    """Share of the rate of the tensor cores: of 2·Q·N·D operations, padding counted as loss.

    alone: no clusters.
    """
    of = kernel(dim, queries, alone)
    full = queries * dim / (-(-queries // 128) * 128 * of.slices * 64)
    return busy(of, card) * waves(queries, rows, of, card) * full


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks ring", description=__doc__)
    parser.add_argument("--l2", type=float, default=Card().l2 / 1e12, help="TB/s (default: 5.5)")
    parser.add_argument("--latency", type=int, default=Card().latency, help="cycles")
    parser.add_argument("--alone", action="store_true", help="without clusters of two blocks")
    given = parser.parse_args(arguments)
    card = Card(l2=given.l2 * 1e12, latency=given.latency)
    print("nearest, screen_wgmma")
    print(f"{'queries x rows x width':>26}{'rows a step':>13}{'stages':>8}{'busy':>8}{'waves':>8}"
          f"{'of the roof':>13}")  # fmt: skip
    for queries, rows, dim in ((50_000, 350_000, 512), (50_000, 350_000, 640),
                               (50_000, 350_000, 768), (2000, 350_000, 512)):  # fmt: skip
        of = kernel(dim, queries, given.alone)
        whole = predicted(queries, rows, dim, card, given.alone)
        shares = busy(of, card), waves(queries, rows, of, card), whole
        print(f"{f'{queries} x {rows} x {dim}':>26}{of.rows:13}{of.stages:8}"
              "{:8.1%}{:8.1%}{:13.1%}".format(*shares))  # fmt: skip
    print("\nmpm_nce in 16 bits, the launch of tiles")
    print(
        f"{'images x texts x width':>26}{'':>13}{'stages':>8}{'busy':>8}{'':>8}{'of the roof':>13}"
    )
    for images, texts, dim in ((32_768, 32_768, 512), (8192, 8192, 512), (32_768, 32_768, 768)):
        for direction in CONTRAST:
            of = contrast_kernel(dim, direction, 1 if given.alone else 2)
            share = contrast_predicted(images, texts, dim, direction, card, given.alone)
            print(f"{f'{images} x {texts} x {dim}':>26}{direction:>13}{of.stages:8}"
                  f"{busy(of, card):8.1%}{'':>8}{share:13.1%}")  # fmt: skip
