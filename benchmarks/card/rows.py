"""A timeline of the kernels that take whole rows from memory (dive): what share of the copy rate
they can reach, predicted from their instructions and the card's rates.

    python -m benchmarks rows [--copy TB/S] [--latency CYCLES] [--issue RATE]

One multiprocessor is followed: a link that brings rows one after the other and takes gradients
away, and four schedulers that issue what is done with them, first come, first served. Warps that
wait for one another (at a barrier, or in a block that is replaced when its last warp is through)
are a group; it asks for its next rows as soon as its kernel does. Then the blocks over the card are
counted, and the bytes of partial sums.

What is left out: instruction caches, bank conflicts, pipes that take two cycles an instruction, the
start and the end of a launch. A measurement below the prediction is one of these.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import torch

from robustft.backends.cuda import dive


class Card(NamedTuple):
    """Of an H200."""

    processors: int = 132
    clock: float = 1.755e9  # Hz
    copy: float = 4.3e12  # bytes a second, read and written, of a large copy
    latency: int = 1400  # cycles until a row is there, under load (some 800 ns)
    issue: float = 0.7  # instructions a cycle of a scheduler: what four warps' dependences leave

    @property
    def bytes_a_cycle(self) -> float:
        """That one multiprocessor gets."""
        return self.copy / self.clock / self.processors


SCHEDULERS = 4


class Kernel(NamedTuple):
    """How a kernel takes rows."""

    read: int  # bytes of a row
    written: int
    instructions: int  # of a warp, for the rows that its group takes at a time
    warps: int = 1  # of a group
    rows: int = 1  # of a group at a time
    groups: int = 16  # on a multiprocessor
    asked: float = 1.0  # share of the instructions after which the next rows are asked for


# Instructions of a row of 4 × 512 16-byte chunks in CUDA C++, counted in the machine code for sm_90
# (tests/cuda/test_sass.py).
CUDA = {
    ("forward", "BFloat16"): 1315,
    ("backward", "BFloat16"): 1815,
    ("forward", "float"): 742,
    ("backward", "float"): 1081,
}
# The next row's chunks are asked for in the second pass over this one's, the first at its quarter:
# on the average after this share of a row's instructions.
AHEAD = 0.8


def share(of: Kernel, card: Card, steps: int = 200) -> float:
    """Of the copy rate, over so many steps of each group."""
    link = end = 0.0
    schedulers = [0.0] * SCHEDULERS
    asks = [0.0] * of.groups  # when each group asks for its next rows
    ready = [0.0] * of.groups  # when it is through with the last ones
    done = [0] * of.groups
    while min(done) < steps:
        who = min((g for g in range(of.groups) if done[g] < steps), key=lambda g: (asks[g], g))
        link = max(link, asks[who]) + of.rows * of.read / card.bytes_a_cycle
        start = max(link + card.latency, ready[who])
        asks[who] = ready[who] = start
        for warp in range(of.warps):
            at = (who * of.warps + warp) % SCHEDULERS
            begun = max(schedulers[at], start)
            taken = of.instructions / card.issue
            schedulers[at] = begun + taken
            asks[who] = max(asks[who], begun + of.asked * taken)
            ready[who] = max(ready[who], begun + taken)
        link += of.rows * of.written / card.bytes_a_cycle
        done[who] += 1
        end = max(end, ready[who])
    moved = steps * of.groups * of.rows * (of.read + of.written)
    return moved / card.bytes_a_cycle / end


def cuda(direction: str, size: int) -> Kernel:
    """dive in CUDA C++, of 1,024 16-bit or 512 float32 numbers a row."""
    row = 2048
    written = 2 * row if direction == "backward" else 0
    kind = "BFloat16" if size == 2 else "float"
    return Kernel(4 * row, written, CUDA[direction, kind], asked=AHEAD)


def predicted(rows: int, dim: int, passes: Sequence[Kernel], card: Card) -> float:
    """Share of the copy rate of both passes: of the bytes that they must move."""
    plan = dive._plan(torch.bfloat16, dim)
    each = plan.rows_each(rows)
    blocks = -(-rows // each)
    full = rows / (-(-blocks // card.processors) * card.processors * each)
    needed = [rows * (of.read + of.written) for of in passes]
    time = sum(n / share(of, card) / full for n, of in zip(needed, passes, strict=True))
    partial = 2 * 2 * 4 * blocks * dim  # centres and sums, written and read
    return sum(needed) / (time + partial)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks rows", description=__doc__)
    parser.add_argument("--copy", type=float, default=Card().copy / 1e12, help="TB/s")
    parser.add_argument("--latency", type=int, default=Card().latency, help="cycles")
    parser.add_argument("--issue", type=float, default=Card().issue, help="of a scheduler, a cycle")
    given = parser.parse_args(arguments)
    card = Card(copy=given.copy * 1e12, latency=given.latency, issue=given.issue)
    print("dive, 65,536 rows, CUDA C++; of the copy rate")
    for name, size, dim in (("bfloat16", 2, 1024), ("float32", 4, 512)):
        passes = [cuda(direction, size) for direction in ("forward", "backward")]
        for direction, of in zip(("forward", "backward"), passes, strict=True):
            print(f"  {name:10}{dim:6}{direction:>10}{of.instructions:7} instructions a row"
                  f"{of.read + of.written:8} bytes{share(of, card):8.1%}")  # fmt: skip
        print(f"  {name:10}{dim:6}      both{predicted(65_536, dim, passes, card):50.1%}")
