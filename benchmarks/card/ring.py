"""A timeline of the wgmma kernels of nearest and mpm_nce (csrc/cuda/ring.cuh): what share of the
tensor cores' rate they can reach, predicted from their instructions and the card's rates.

    python -m benchmarks ring [--l2 TB/S] [--latency CYCLES]

One multiprocessor is followed: a link that brings stages one after the other, tensor cores that
multiply for one warpgroup at a time, schedulers that issue what follows the products: nearest's
tests, mpm_nce's exponentials, of which a scheduler starts one warp's in eight cycles. Each party
does the next thing as soon as what it waits for is there, as the ring's barriers have it
(tests/cuda/test_ring.py looks at their logic in every order). Then the waves of blocks over the
card are counted.

What is left out: instruction caches, bank conflicts and the rate of shared memory, the card's clock
under load, the first tile of queries or images, writes of ∂Z, other kernels. A measurement below
the prediction is one of these; above it, a wrong rate.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from robustft.backends.cuda import mpm_nce, nearest

SLICE_BYTES = 128 * 64 * 2  # 128 rows of 64 halves
WARPGROUPS = 2


class Card(NamedTuple):
    """Of an H200: 989 TFLOP/s in float16 is 2,048 products a cycle on each multiprocessor."""

    processors: int = 132
    clock: float = 1.755e9  # Hz
    products: int = 2048  # a cycle and multiprocessor
    l2: float = 5.5e12  # bytes a second of the second-level cache, all multiprocessors together
    latency: int = 900  # cycles until a copy's bytes are there
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

    @property
    def stage_bytes(self) -> int:
        return self.rows // 128 * SLICE_BYTES + (0 if self.resident else SLICE_BYTES)


TESTS = {128: 674, 256: 1216}  # counted in the machine code for sm_90a


# Instructions of a tile that is not out of the ordinary, all around its products included, and
# exponentials: forward, backward.
CONTRAST = {"forward": (345, 64), "backward": (960, 128)}
_EXPONENTIAL = 8  # cycles of a scheduler for those of a warp


def contrast_kernel(dim: int, direction: str, shared: int = 227 << 10) -> Kernel:
    """What a launch of mpm_nce takes at this width."""
    slices = -(-dim // 64)
    shape = mpm_nce.shape_of(torch.bfloat16, slices, shared, mpm_nce.KEPT[direction])
    instructions, exponentials = CONTRAST[direction]
    test = max(instructions, _EXPONENTIAL * exponentials)
    return Kernel(128, "true" in shape.kind, shape.stages, slices, test)


def contrast_predicted(images: int, texts: int, dim: int, direction: str, card: Card) -> float:
    """Share of the tensor cores' rate of 2·B·C·D operations, in the launch of tiles alone."""
    of = contrast_kernel(dim, direction)
    blocks, tiles = -(-images // 128), -(-texts // 128)
    splits = mpm_nce.splits_of(blocks, tiles, card.processors)
    # A block's images are fetched in the time of a tile, before they are multiplied.
    steps = -(-tiles // splits)
    rounds = -(-blocks * splits // card.processors)
    full = blocks * tiles / (rounds * card.processors * (steps + of.resident))
    full *= images * texts * dim / (blocks * tiles * 128 * 128 * of.slices * 64)
    return busy(of, card, steps) * full


def kernel(dim: int, shared: int = 227 << 10) -> Kernel:
    """What a launch takes at this width."""
    slices = -(-dim // 64)
    shape = nearest._wgmma(slices, shared)
    return Kernel(shape.rows, "true" in shape.kernel, shape.stages, slices, TESTS[shape.rows])


def busy(of: Kernel, card: Card, steps: int = 64) -> float:
    """Share of the time in which the tensor cores multiply, over so many steps of one block."""
    product = 64 * of.rows * 64 / card.products  # cycles of a warpgroup's slice
    fetch = of.stage_bytes / card.bytes_a_cycle
    items = steps * of.slices
    released = [[0.0] * items for _ in range(WARPGROUPS)]  # when a warpgroup gave a stage back
    arrived: list[float] = []
    link = tensor = schedulers = 0.0
    clock = [0.0] * WARPGROUPS
    ended = [0.0] * WARPGROUPS  # of the last product of each
    done = [0] * WARPGROUPS
    while min(done) < items:
        # The stage of an item is free once both have begun what follows its last one.
        ready = [w for w in range(WARPGROUPS) if done[w] < items]
        ready = [w for w in ready if min(done) >= min(items, done[w] - of.stages + 2)]
        who = min(ready, key=lambda w: (clock[w], w))
        item = done[who]
        while len(arrived) <= item:
            n = len(arrived)
            free = max(r[n - of.stages] for r in released) if n >= of.stages else 0.0
            link = max(link, free) + fetch
            arrived.append(link + card.latency)
        start = max(clock[who], arrived[item], tensor)
        before, ended[who] = ended[who], start + product
        tensor = ended[who]
        clock[who] = max(clock[who], arrived[item], before)  # wgmma_wait<1>
        if item % of.slices:
            released[who][item - 1] = clock[who]
        if (item + 1) % of.slices == 0:
            clock[who] = released[who][item] = ended[who]
            # A warp a scheduler; both warpgroups' tests share it.
            schedulers = max(schedulers, clock[who]) + of.test
            clock[who] = max(clock[who] + of.test / card.issue, schedulers)
        done[who] += 1
    return WARPGROUPS * items * product / max(clock)


def waves(queries: int, rows: int, of: Kernel, card: Card) -> float:
    """Share of the multiprocessors that have a block, over all waves of a launch."""
    tiles = -(-queries // 128)
    splits = nearest._splits(tiles, -(-rows // of.rows), card.processors)
    blocks = tiles * splits
    return blocks / (math.ceil(blocks / card.processors) * card.processors)


def predicted(queries: int, rows: int, dim: int, card: Card) -> float:
    """Share of the rate of the tensor cores: of 2·Q·N·D operations, padding counted as loss."""
    of = kernel(dim)
    full = queries * dim / (-(-queries // 128) * 128 * of.slices * 64)
    return busy(of, card) * waves(queries, rows, of, card) * full


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks ring", description=__doc__)
    parser.add_argument("--l2", type=float, default=Card().l2 / 1e12, help="TB/s (default: 5.5)")
    parser.add_argument("--latency", type=int, default=Card().latency, help="cycles")
    given = parser.parse_args(arguments)
    card = Card(l2=given.l2 * 1e12, latency=given.latency)
    print("nearest, screen_wgmma")
    print(f"{'queries x rows x width':>26}{'rows a step':>13}{'stages':>8}{'busy':>8}{'waves':>8}"
          f"{'of the roof':>13}")  # fmt: skip
    for queries, rows, dim in ((50_000, 350_000, 512), (50_000, 350_000, 640),
                               (50_000, 350_000, 768), (2000, 350_000, 512)):  # fmt: skip
        of = kernel(dim)
        shares = busy(of, card), waves(queries, rows, of, card), predicted(queries, rows, dim, card)
        print(f"{f'{queries} x {rows} x {dim}':>26}{of.rows:13}{of.stages:8}"
              "{:8.1%}{:8.1%}{:13.1%}".format(*shares))  # fmt: skip
    print("\nmpm_nce in 16 bits, the launch of tiles")
    print(
        f"{'images x texts x width':>26}{'':>13}{'stages':>8}{'busy':>8}{'':>8}{'of the roof':>13}"
    )
    for images, texts, dim in ((32_768, 32_768, 512), (8192, 8192, 512), (32_768, 32_768, 768)):
        for direction in CONTRAST:
            of = contrast_kernel(dim, direction)
            share = contrast_predicted(images, texts, dim, direction, card)
            print(f"{f'{images} x {texts} x {dim}':>26}{direction:>13}{of.stages:8}"
                  f"{busy(of, card):8.1%}{'':>8}{share:13.1%}")  # fmt: skip
