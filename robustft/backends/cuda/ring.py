"""Shared memory of the kernels with a ring of stages (csrc/cuda/ring.cuh)."""

from __future__ import annotations

from typing import NamedTuple

TILE = 128  # rows of a block's own tile, and of one that flows past
TILE_SLICE = TILE * 64 * 2  # bytes of 64 numbers of it
THREADS = 384
WARPS = 8  # that multiply
_MOST = 8  # stages


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
        beside = TILE_SLICE * slices * resident + kept + 8
        stages = min((shared - beside) // (stage + 16), _MOST)
        if stages >= least:
            break
    return Ring(parts, resident, stages, beside + stages * (stage + 16))
