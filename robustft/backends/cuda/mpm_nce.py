"""mpm_nce in CUDA C++ for sm_90a (csrc/cuda/mpm_nce_*.cu), bfloat16 and float16: no B×C matrix, no
atomics on floats.

Forward, three launches: features to tiles (`pack`), sums of exponentials by wgmma (`forward_tiles`,
128 images a block against a range of texts), sums added up (`merge`). Where the sums of all blocks
exceed SCRATCH the images are taken in slabs, and `fold` adds one slab's up before the next.

Backward: features to tiles, ∂Z a workspace at a time (`grad_tiles`), two library products with
float32 sums, both gradients scaled and rounded once (`finish`).

What is kept for backward is what the Triton kernels keep (robustft/kernels/mpm_nce.py).
"""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from robustft.backends.contrast import expect_saved, factor_of, fitting, squares
from robustft.backends.contrast import saved_shapes as saved_shapes
from robustft.backends.cuda import ring
from robustft.backends.cuda.device import card_of
from robustft.backends.cuda.launcher import Argument, launch
from robustft.backends.options import MpmNceOptions, Positives
from robustft.backends.tensors import (
    add_product,
    expect,
    expect_contrast,
    product,
    unit_stride,
)

_TYPES = {torch.bfloat16: "BFloat16", torch.float16: "Half"}
_TILE = ring.TILE  # images, and texts, of a tile
_SUMS = 16  # bytes of an anchor's sums
_ANCHORS = 32  # of a block of the merge
#: Bytes of shared memory beside the ring: each warp's sums of the images; what ∂Z takes of them.
KEPT = {"forward": ring.WARPS * _TILE * _SUMS, "backward": _TILE * _SUMS}
# Images stay in shared memory where four stages of texts fit beside them (D = 576 with 227 KB);
# else both flow past.
_WAYS = (ring.Way(1, True, 4), ring.Way(1, False, 2))


class Shape(NamedTuple):
    """A launch of tiles."""

    kind: str  # the kernels' template arguments
    stages: int
    shared: int  # bytes


@functools.cache
def shape_of(dtype: torch.dtype, slices: int, shared: int, kept: int, cluster: int) -> Shape:
    """kept: bytes that the kernel keeps beside its ring."""
    of = ring.fit(_WAYS, slices, shared, kept)
    kind = f"<{_TYPES[dtype]}, {str(of.resident).lower()}, {cluster}>"
    return Shape(kind, of.stages, of.shared)


@functools.cache
def splits_of(blocks: int, tiles: int, processors: int) -> int:
    """Ranges of texts, for blocks of images (or clusters of them, and of processors): the least
    time in tiles, of which fetching the images is one. Of two tiles at least where there are two:
    the first of a range is the dearest."""
    return min(
        range(1, max(1, min(tiles // 2, processors)) + 1),
        key=lambda splits: -(-blocks * splits // processors) * (-(-tiles // splits) + 1),
    )


class _Tiles(NamedTuple):
    """Both sides in tiles, and where the counter of the merge is."""

    memory: Tensor
    image: int
    text: int
    counter: int
    slices: int


def _packed(x: Tensor, y: Tensor) -> _Tiles:
    (rows, dim), columns = x.shape, len(y)
    slices = -(-dim // 64)
    sizes = [-(-n // _TILE) * slices * ring.TILE_SLICE for n in (rows, columns)]
    memory = x.new_empty(sum(sizes) + 16, dtype=torch.uint8)
    image = memory.data_ptr()
    text, counter = image + sizes[0], image + sum(sizes)
    aligned = all(m.data_ptr() % 16 == 0 and m.stride(0) % 8 == 0 for m in (x, y))
    chunks = sum(sizes) // 16
    launch(
        "mpm_nce_pack", "mpm_nce::pack", (-(-chunks // 256),), 256,
        (x, x.stride(0), rows, y, y.stride(0), columns, dim, slices, aligned, image, text, counter),
    )  # fmt: skip
    return _Tiles(memory, image, text, counter, slices)


def _pairs(positives: Positives) -> tuple[Argument, ...]:
    """What the kernels take of the positive pairs."""
    rows, columns, mask, ignore = positives
    if mask is not None:
        mask = unit_stride(mask)[0]
        return (None, None, mask, mask.stride(0), ignore, 2)
    if rows is not None and columns is not None:
        return (rows.contiguous(), columns.contiguous(), None, 0, ignore, 1)
    return (None, None, None, 0, ignore, 0)


def _sums_of_products(x: Tensor, y: Tensor, no_self: bool) -> Tensor:
    """[B]: Σ_j <x_i, y_j>, without j = i if that is no pair."""
    out = x.new_empty(len(x), dtype=torch.float32)
    own = y if no_self else None
    launch(
        "mpm_nce_pack", f"mpm_nce::products<{_TYPES[x.dtype]}>", (-(-len(x) // 8),), 256,
        (x, x.stride(0), own, y.stride(0), y.sum(0, dtype=torch.float32), *x.shape, out),
    )  # fmt: skip
    return out


def forward(
    image: Tensor,
    text: Tensor,
    positives: Positives,
    scale: Tensor,
    options: MpmNceOptions,
    keep_logits: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, row statistics [3, B], column statistics [3, C] or [3, 0], numbers of anchors [2]).

    Of an anchor, in base 2: shift (Inf where the anchor has no positive), log₂ Σ 2^(Z − shift),
    positives.
    """
    margin, smoothing, symmetric, no_self = options
    expect_contrast(image, text, *positives[:3], scale, symmetric, no_self)
    x, y = unit_stride(image, text)
    rows, columns = len(x), len(y)
    card = card_of(x.device)
    tiles = _packed(x, y)
    pairs = _pairs(positives)
    blocks, text_tiles = -(-rows // _TILE), -(-columns // _TILE)
    cluster = ring.cluster_of(blocks)
    shape = shape_of(x.dtype, tiles.slices, card.shared, KEPT["forward"], cluster)
    # A slab is whole clusters, but for the last: a spare block is behind the last image.
    slab = max(fitting(_SUMS * columns) // cluster, 1) * cluster if symmetric else blocks
    slab = min(slab, blocks)
    splits = splits_of(-(-slab // cluster), text_tiles, card.processors // cluster)
    splits = min(splits, fitting(_SUMS * rows))
    several = slab < blocks
    anchor_blocks = -(-rows // _ANCHORS) + -(-columns // _ANCHORS) * symmetric
    # Of images; of texts, so far and of a slab; of the merge's blocks.
    words = 4 * (splits * rows + (slab + several) * columns * symmetric) + 2 * anchor_blocks
    scratch = x.new_empty(words, dtype=torch.float32)
    of_images = scratch.data_ptr()
    so_far = of_images + _SUMS * splits * rows
    of_texts = so_far + _SUMS * columns * several
    of_blocks = so_far + _SUMS * (slab + several) * columns * symmetric
    for first in range(0, blocks, slab):
        height = min(slab, blocks - first)
        launch(
            "mpm_nce_forward", f"mpm_nce::forward_tiles{shape.kind}",
            (ring.whole(height, cluster), splits), ring.THREADS,
            (tiles.image, tiles.text, scale, *pairs, no_self, margin, rows, columns, first,
             tiles.slices, shape.stages, of_texts if symmetric else None, of_images),
            shape.shared, cluster,
        )  # fmt: skip
        if several:
            parts = scratch[4 * splits * rows :]  # so far, which the first slab has not, and new
            launch(
                "mpm_nce_merge", "mpm_nce::fold", (-(-columns // _ANCHORS),), 256,
                (parts if first else parts[4 * columns :], height + (first > 0), columns, so_far),
            )  # fmt: skip
    row_statistics = x.new_empty((3, rows), dtype=torch.float32)
    column_statistics = x.new_empty((3, columns if symmetric else 0), dtype=torch.float32)
    loss, anchors = (x.new_empty(n, dtype=torch.float32) for n in ((), 2))
    of_rows = of_columns = None
    if smoothing > 0:
        of_rows = _sums_of_products(x, y, no_self)
        of_columns = _sums_of_products(y, x, no_self) if symmetric else None
    launch(
        "mpm_nce_merge", "mpm_nce::merge", (anchor_blocks,), 256,
        (of_images, splits, so_far if symmetric else None, 1 if several else slab,
         of_rows, of_columns, scale, rows, columns, no_self, margin, smoothing, row_statistics,
         column_statistics, of_blocks, tiles.counter, loss, anchors),
    )  # fmt: skip
    return loss, row_statistics, column_statistics, anchors


def backward(
    image: Tensor,
    text: Tensor,
    positives: Positives,
    scale: Tensor,
    row_statistics: Tensor,
    column_statistics: Tensor,
    anchors: Tensor,
    grad: Tensor,
    options: MpmNceOptions,
    need_image: bool,
    need_text: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to image, text (contiguous; empty if not needed) and scale."""
    margin, smoothing, symmetric, no_self = options
    expect_contrast(image, text, *positives[:3], scale, symmetric, no_self)
    saved = (row_statistics, column_statistics, anchors)
    expect_saved(saved, len(image), len(text), symmetric)
    expect("grad", grad, torch.float32, ())
    x, y = unit_stride(image, text)
    rows, columns = len(x), len(y)
    card = card_of(x.device)
    tiles = _packed(x, y)
    pairs = _pairs(positives)
    # ∂Z has the texts as rows; their ends are padded, so that a thread writes two numbers at once.
    # Parts of the images are whole clusters, but for the last.
    texts, images = squares(columns, rows, _TILE, 2 * _TILE, x.element_size())
    height, width = (parts[0].stop for parts in (texts, images))
    grad_z = x.new_empty((height, -(-width // 8) * 8))
    blocks = [
        _square(of_texts, of_images, card.processors)
        for of_texts, of_images in itertools.product(texts, images)
    ]
    each = [of.grid[0] * of.grid[1] * ring.WARPS for of in blocks]
    parts = x.new_empty(sum(each), dtype=torch.float64)
    # Stands for the product of a side that needs no gradient.
    x_product = y_product = x.new_empty(0, dtype=torch.float32)
    several = len(blocks) > 1
    if several and need_image:
        x_product = x.new_zeros(x.shape, dtype=torch.float32)
    if several and need_text:
        y_product = y.new_zeros(y.shape, dtype=torch.float32)
    factor = factor_of(rows, columns)
    first_part = 0
    for (of_texts, of_images, cluster, grid), number in zip(blocks, each, strict=True):
        shape = shape_of(x.dtype, tiles.slices, card.shared, KEPT["backward"], cluster)
        dz = grad_z[: of_texts.stop - of_texts.start, : of_images.stop - of_images.start]
        launch(
            "mpm_nce_backward", f"mpm_nce::grad_tiles{shape.kind}", grid, ring.THREADS,
            (tiles.image, tiles.text, scale, *pairs, no_self, margin, smoothing, factor,
             row_statistics, column_statistics if symmetric else None, anchors, rows, columns,
             of_images.start // _TILE, of_texts.start // _TILE, _tiles_of(of_texts), tiles.slices,
             shape.stages, grad_z, grad_z.stride(0), parts[first_part:]),
            shape.shared, cluster,
        )  # fmt: skip
        first_part += number
        if need_image and several:
            add_product(x_product[of_images], dz.T, y[of_texts])
        elif need_image:
            x_product = product(dz.T, y)
        if need_text and several:
            add_product(y_product[of_texts], dz, x[of_images])
        elif need_text:
            y_product = product(dz, x)
    grad_x = x.new_empty(x.shape if need_image else 0)
    grad_y = y.new_empty(y.shape if need_text else 0)
    grad_scale = torch.empty_like(scale)
    largest = max(x_product.numel(), y_product.numel(), 1)
    launch(
        "mpm_nce_merge", f"mpm_nce::finish<{_TYPES[x.dtype]}>", (min(-(-largest // 2048), 4096),),
        256,
        (x_product, x_product.numel(), y_product, y_product.numel(), parts, len(parts), scale, grad,
         factor, grad_x, grad_y, grad_scale),
    )  # fmt: skip
    return grad_x, grad_y, grad_scale


class _Square(NamedTuple):
    """A launch of grad_tiles."""

    texts: slice
    images: slice
    cluster: int
    grid: tuple[int, int]


def _square(texts: slice, images: slice, processors: int) -> _Square:
    blocks = _tiles_of(images)
    cluster = ring.cluster_of(blocks)
    splits = splits_of(-(-blocks // cluster), _tiles_of(texts), processors // cluster)
    return _Square(texts, images, cluster, (ring.whole(blocks, cluster), splits))


def _tiles_of(some: slice) -> int:
    """Tiles that a slice takes."""
    return -(-(some.stop - some.start) // _TILE)
