"""Tile sizes and warps of every kernel: a static table, nothing is tuned when it runs.

An entry is looked up by compute capability, storage dtype and the bucket of the row width (the next
power of two); None stands for any. What `robustft tune` found on this very card comes first; then
the first line that matches counts: those of tuned.py, which `python -m benchmarks tune` measures on
a card, before those here, which are chosen to fit every card's registers and shared memory.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import torch

from robustft.backends.proof import tuned as here
from robustft.kernels import tuned

Line = tuple[tuple[int | None, str | None, int | None], dict[str, Any]]

# kernel → ((capability, dtype, largest bucket), options) lines, the most special first.
_CHOSEN: dict[str, tuple[Line, ...]] = {
    # Elements a tile: about 2,048, so that four inputs and three sums fit the registers.
    "dive": (
        ((0, None, None), {"BLOCK_R": 32, "num_warps": 4}),  # the interpreter: few programs
        # A quarter of that: more spills in one dtype or another, with Triton 3.6 or 3.9.
        ((None, None, 256), {"BLOCK_R": 2, "num_warps": 2}),
        # Triton 3.8 spills some bytes of larger tiles of bfloat16 for sm_90.
        ((90, "bfloat16", 512), {"BLOCK_R": 2, "num_warps": 4}),
        ((None, None, 512), {"BLOCK_R": 4, "num_warps": 4}),
        ((90, "bfloat16", 1024), {"BLOCK_R": 1, "num_warps": 4}),
        ((None, None, 1024), {"BLOCK_R": 2, "num_warps": 4}),
        ((None, None, 2048), {"BLOCK_R": 1, "num_warps": 4}),
        ((None, None, 4096), {"BLOCK_R": 1, "num_warps": 8}),
        ((None, None, None), {"BLOCK_R": 1, "num_warps": 16}),
    ),
    # float32 products run on the vector units: smaller tiles, or the sums spill.
    "mpm_nce": (
        ((0, None, None), {"BLOCK_M": 32, "BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 4}),
        (
            (None, "float32", None),
            {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 16, "num_warps": 8, "num_stages": 3},
        ),
        # A tile of 64 x 64 asks the second-level cache for twice the bytes of one of 128 x 128:
        # 31 KB a MFLOP, some 24 TB/s at the rate of an H200's tensor cores. Tall ones leave fewer
        # sums of columns: 134 MB at B = C = 32,768.
        (
            (90, None, None),
            {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 8, "num_stages": 3},
        ),
        (  # with 64 columns a step Triton 3.9 spills 16 bytes in the loop of forward_tiles
            (100, None, None),
            {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32, "num_warps": 8, "num_stages": 4},
        ),
        (
            (None, None, None),
            {"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 8, "num_stages": 3},
        ),
    ),
    "nearest": (
        ((0, None, None), {"BLOCK_M": 64, "BLOCK_N": 1024, "BLOCK_K": 64, "num_warps": 4}),
        (
            (100, None, None),
            {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 8, "num_stages": 3},
        ),
        (
            (None, None, None),
            {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 8, "num_stages": 3},
        ),
    ),
    "rsa": (
        ((0, None, None), {"BLOCK": 128, "BLOCK_K": 64, "num_warps": 4}),
        ((None, None, None), {"BLOCK": 64, "BLOCK_K": 32, "num_warps": 8, "num_stages": 3}),
    ),
    # Two rows of logits and their exponentials in registers: 16 elements of each a thread or fewer.
    "vrf": (
        ((None, None, 512), {"num_warps": 1}),
        ((None, None, 1024), {"num_warps": 2}),
        ((None, None, 2048), {"num_warps": 4}),
        ((None, None, 4096), {"num_warps": 8}),
        ((None, None, None), {"num_warps": 16}),
    ),
}


_OPTIONAL = {"num_stages"}  # which the interpreter's lines lack

TABLE: dict[str, tuple[Line, ...]] = {
    kernel: (*tuned.LINES.get(kernel, ()), *lines) for kernel, lines in _CHOSEN.items()
}


def bucket(width: int) -> int:
    """The next power of two: one compiled kernel serves a bucket."""
    return 1 << (width - 1).bit_length()


def candidates(op: str, width: int, quick: bool) -> list[dict[str, Any]]:
    """What a tuner tries: of a matrix kernel tiles by warps by stages, of a row rows and warps."""
    power = bucket(width)
    if op == "dive":
        # 512 to 8,192 elements a tile, 4 to 64 of them a thread.
        return [
            {"BLOCK_R": rows, "num_warps": warps}
            for rows, warps in itertools.product((1, 2, 4, 8, 16), (1, 2, 4, 8, 16))
            if 512 <= rows * power <= 8192 and 4 <= rows * power // (32 * warps) <= 64
        ]
    if op == "vrf":
        return [
            {"num_warps": warps} for warps in (1, 2, 4, 8, 16) if 4 <= power // (32 * warps) <= 64
        ]
    if op == "rsa":
        sides, depths = (64, 128), (32, 64)
        return [
            {"BLOCK": side, "BLOCK_K": depth, "num_warps": warps, "num_stages": stages}
            for side, depth, warps, stages in itertools.product(sides, depths, (4, 8), (2, 3, 4))
        ]
    tile = (64, 128, 256)
    inner: tuple[int, ...] = (64,) if quick else (32, 64, 128)
    in_flight: tuple[int, ...] = (3, 4) if quick else (2, 3, 4, 5)
    return [
        {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "num_warps": w, "num_stages": s}
        for m, n, k, w, s in itertools.product(tile, tile, inner, (4, 8), in_flight)
        # 32 to 128 sums a thread: more spill, with fewer the products starve.
        if 32 <= m * n // (32 * w) <= 128
    ]


@functools.cache
def config(kernel: str, device: torch.device, dtype: torch.dtype, width: int) -> dict[str, Any]:
    """The options of `kernel` for rows of `width` elements of `dtype` on `device`."""
    capability = 0
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        capability = 10 * major + minor
    shipped = choose(kernel, capability, dtype, width)
    own = here.known(device).tiles.get(f"{here.name(kernel, dtype)} {bucket(width)}", {})
    # What is not of this kernel's options came from a file that something else has written.
    return own if set(own) - _OPTIONAL == set(shipped) - _OPTIONAL else shipped


def choose(kernel: str, capability: int, dtype: torch.dtype, width: int) -> dict[str, Any]:
    """As `config`, for a compute capability (90 for sm_90) instead of a device."""
    name = str(dtype).removeprefix("torch.")
    for (for_capability, for_dtype, largest), options in TABLE[kernel]:
        if (
            for_capability in (None, capability)
            and for_dtype in (None, name)
            and (largest is None or bucket(width) <= largest)
        ):
            return options
    raise KeyError(f"{kernel}: no configuration for {name}, width {width}")
