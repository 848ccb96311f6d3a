"""Shared memory of the kernels with a ring of stages (csrc/cuda/ring.cuh)."""

from __future__ import annotations

from typing import NamedTuple

TILE = 128  # rows of a block's own tile, and of one that flows past
TILE_SLICE = TILE * 64 * 2  # bytes of 64 numbers of it
THREADS = 384
WARPS = 8  # that multiply
_MOST = 8  # stages
_FEW = 8  # blocks, of which none is to be spare


class Way(NamedTuple):
    """How a kernel may be taken, and the stages that it then wants at least."""

    parts: int  # tiles of a step
    resident: bool  # whether the block's own tile stays in shared memory
    least: int


class Ring(NamedTuple):
    parts: int
    resident: bool
    stages: int
    shared: int  # bytes


def fit(ways: tuple[Way, ...], slices: int, shared: int, kept: int = 0) -> Ring:
    """The first way that finds room for its stages, else the last one.

    slices: of 64 columns. shared: bytes that a block may have. kept: of which the kernel keeps
    beside the ring.
    """
    for parts, resident, least in ways:
        stage = TILE_SLICE * (parts + (not resident))
        beside = TILE_SLICE * slices * resident + kept + 16
        stages = min((shared - beside) // (stage + 32), _MOST)
        if stages >= least:
            break
    return Ring(parts, resident, stages, beside + stages * (stage + 32))


def cluster_of(blocks: int) -> int:
    """How many of so many blocks, which take the same rows, fetch them together: two, so that the
    second-level cache is read once for both. Where that needs a spare block among few, one."""
    return 2 if blocks % 2 == 0 or blocks > _FEW else 1


def whole(blocks: int, cluster: int) -> int:
    """Blocks of a grid of whole clusters; a spare one takes part and has nothing to write."""
    return -(-blocks // cluster) * cluster
