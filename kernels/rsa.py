"""rsa on a GPU: the Pearson correlation of two sets of pairwise distances, tile by tile.

    E_ij = |a_i − a_j|, F_ij = |b_i − b_j|   or 1 − cos = ½·|â_i − â_j|² of unit rows;   i < j

A program takes one tile on or above the diagonal, multiplies it for both sets, and leaves its
number of pairs, the two means, and the sums of squares and of products about them; these are merged
in float64 (the update of Chan, Golub and LeVeque for all tiles at once). D·N² multiplications and
additions in all, and no N×N matrix.

|a − b|² comes from the float32 product of centred rows. Where it leaves less than 2^-7 of the norms
the tile sums Σ(a − b)² of its rows instead. Distances are right to about 1e-6; a spread below 3e-6
of their mean is rounding, and the correlation NaN.

Spearman's ranks need sorting, not products: the reference serves it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from robustft.backends.reference import rsa as reference
from robustft.backends.tensors import expect_samples
from robustft.kernels.configs import config

_FLAT = 3e-6
_ROWS = 16384  # converted at a time


@triton.jit
def _squares(
    x, norms, i, j, n, dim,
    BLOCK: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    """|x_i − x_j|² [BLOCK, BLOCK]."""
    k = tl.arange(0, BLOCK_K)
    row = tl.minimum(i, n - 1).to(tl.int64)
    column = tl.minimum(j, n - 1).to(tl.int64)
    products = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, dim, BLOCK_K):
        k_mask = k < dim - start
        a_pointers = x + row[:, None] * dim + (start + k)[None, :]
        b_pointers = x + column[None, :] * dim + (start + k)[:, None]
        if EVEN_K:
            a, b = tl.load(a_pointers), tl.load(b_pointers)
        else:
            a = tl.load(a_pointers, mask=k_mask[None, :], other=0.0)
            b = tl.load(b_pointers, mask=k_mask[:, None], other=0.0)
        products = tl.dot(a, b, products, input_precision="ieee")
    size = tl.load(norms + row)[:, None] + tl.load(norms + column)[None, :]
    squared = size - 2 * products
    pair_mask = (i[:, None] < j[None, :]) & (j < n)[None, :]
    cancelled = pair_mask & (squared < size * 0.0078125)
    if tl.max(tl.max(cancelled.to(tl.int32), 1), 0) > 0:
        summed = tl.zeros((BLOCK, BLOCK), tl.float32)
        for d in range(dim):
            difference = (
                tl.load(x + row * dim + d)[:, None] - tl.load(x + column * dim + d)[None, :]
            )
            summed += difference * difference
        squared = tl.where(cancelled, summed, squared)
    return squared, pair_mask


@triton.jit
def moments_tiles(
    a, b, a_norms, b_norms, out, n, dim_a, dim_b, field,
    COSINE: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
    EVEN_A: tl.constexpr, EVEN_B: tl.constexpr,
):  # fmt: skip
    """out[:, tile]: pairs, the means of E and F, ΣEE, ΣFF and ΣEF about them."""
    tile_i, tile_j = tl.program_id(0), tl.program_id(1)
    field = tl.cast(field, tl.int64)  # from 1.3 million rows on its multiples exceed 32 bits
    tile_out = out + tile_i * tl.num_programs(1) + tile_j
    if tile_j < tile_i:
        for number in range(6):
            tl.store(tile_out + number * field, 0.0)
    else:
        i = tile_i * BLOCK + tl.arange(0, BLOCK)
        j = tile_j * BLOCK + tl.arange(0, BLOCK)
        e, pair_mask = _squares(a, a_norms, i, j, n, dim_a, BLOCK, BLOCK_K, EVEN_A)
        f, _same = _squares(b, b_norms, i, j, n, dim_b, BLOCK, BLOCK_K, EVEN_B)
        if COSINE:
            e, f = 0.5 * e, 0.5 * f
        else:
            # Rounding may leave less than nothing; a NaN stays.
            e = tl.sqrt_rn(tl.where(e < 0, 0.0, e))
            f = tl.sqrt_rn(tl.where(f < 0, 0.0, f))
        count = tl.sum(tl.sum(pair_mask.to(tl.float32), 1), 0)
        share = 1.0 / tl.maximum(count, 1.0)
        mean_e = tl.sum(tl.sum(tl.where(pair_mask, e, 0.0), 1), 0) * share
        mean_f = tl.sum(tl.sum(tl.where(pair_mask, f, 0.0), 1), 0) * share
        e = tl.where(pair_mask, e - mean_e, 0.0)
        f = tl.where(pair_mask, f - mean_f, 0.0)
        # The means are rounded: what that leaves goes back into them.
        left_e, left_f = tl.sum(tl.sum(e, 1), 0) * share, tl.sum(tl.sum(f, 1), 0) * share
        tl.store(tile_out, count)
        tl.store(tile_out + field, mean_e + left_e)
        tl.store(tile_out + 2 * field, mean_f + left_f)
        tl.store(tile_out + 3 * field, tl.sum(tl.sum(e * e, 1), 0) - count * left_e * left_e)
        tl.store(tile_out + 4 * field, tl.sum(tl.sum(f * f, 1), 0) - count * left_f * left_f)
        tl.store(tile_out + 5 * field, tl.sum(tl.sum(e * f, 1), 0) - count * left_e * left_f)


class _Space(NamedTuple):
    rows: Tensor  # [N, D] float32, centred; of unit length before, for cosines
    norms: Tensor


def correlation(a: Tensor, b: Tensor, metric: str, method: str) -> Tensor:
    """A float64 scalar."""
    expect_samples(a, b)
    if method == "spearman":
        return reference.correlation(a, b, metric, method)
    cosine, n = metric == "cosine", len(a)
    x, y = _space(a, cosine), _space(b, cosine)
    options = config("rsa", a.device, torch.float32, max(a.shape[1], b.shape[1]))
    tiles = triton.cdiv(n, options["BLOCK"])
    out = a.new_empty((6, tiles, tiles), dtype=torch.float32)
    moments_tiles[(tiles, tiles)](
        x.rows, y.rows, x.norms, y.norms, out, n, a.shape[1], b.shape[1], out.stride(0),
        COSINE=cosine, EVEN_A=a.shape[1] % options["BLOCK_K"] == 0,
        EVEN_B=b.shape[1] % options["BLOCK_K"] == 0, **options,
    )  # fmt: skip
    count, mean_e, mean_f, ee, ff, ef = out.flatten(1).double()
    total = count.sum()
    off_e = mean_e - (count * mean_e).sum() / total
    off_f = mean_f - (count * mean_f).sum() / total
    ee = (ee + count * off_e * off_e).sum()
    ff = (ff + count * off_f * off_f).sum()
    ef = (ef + count * off_e * off_f).sum()
    flat_e = ee <= (_FLAT * (count * mean_e).sum()) ** 2 / total
    flat_f = ff <= (_FLAT * (count * mean_f).sum()) ** 2 / total
    if cosine:  # rows of one direction, but for rounding
        flat_e |= (count * mean_e).sum() <= 1e6 * reference.SAME * total
        flat_f |= (count * mean_f).sum() <= 1e6 * reference.SAME * total
    value = (ef / (ee.sqrt() * ff.sqrt())).clamp(-1, 1)
    return value.masked_fill(flat_e | flat_f, torch.nan)


def _space(x: Tensor, cosine: bool) -> _Space:
    """Rows and norms in float32, made in float64 block by block."""
    mean = x.new_zeros(x.shape[1], dtype=torch.float64)
    for block in x.split(_ROWS):
        mean += _unit(block, cosine).sum(0)
    mean /= len(x)
    rows = x.new_empty(x.shape, dtype=torch.float32)
    norms = x.new_empty(len(x), dtype=torch.float32)
    for first in range(0, len(x), _ROWS):
        part = slice(first, first + _ROWS)
        rows[part] = _unit(x[part], cosine) - mean
        norms[part] = rows[part].double().square().sum(1)
    return _Space(rows, norms)


def _unit(x: Tensor, cosine: bool) -> Tensor:
    x = x.double()
    return x / x.norm(dim=1, keepdim=True) if cosine else x
