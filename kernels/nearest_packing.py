"""Packing of nearest's rows in Triton (kernels/nearest.py): a few rows a program, in float64."""

from __future__ import annotations

import triton
import triton.language as tl

from robustft.backends.search import packing

_TINY = tl.constexpr(packing.TINY)
_LARGEST = tl.constexpr(packing.LARGEST)
_WIDER = tl.constexpr(packing.WIDER)
_SCALE = tl.constexpr(packing.SCALE)
_RESIDUAL = tl.constexpr(packing.RESIDUAL)
_NORM = tl.constexpr(packing.NORM)
_SQUARE = tl.constexpr(packing.SQUARE)
_INF = tl.constexpr(float("inf"))


@triton.jit
def _centred(x, stride, mean, i, k, rows, dim):
    """x − mean in float64 for rows i and columns k, 0 beyond either end."""
    mask = (i < rows)[:, None] & (k < dim)[None, :]
    a = tl.load(x + i.to(tl.int64)[:, None] * stride + k[None, :], mask=mask, other=0.0)
    m = tl.load(mean + k, mask=k < dim, other=0.0)
    return tl.where(mask, a.to(tl.float64) - m.to(tl.float64)[None, :], 0.0)


@triton.jit(do_not_specialize=["rows"])
def round_rows(
    x, mean, halves, numbers, stride, field_stride, rows, dim, width,
    SCALED: tl.constexpr, R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """SearchKernels.round_rows for R rows."""
    i = tl.program_id(0) * R + tl.arange(0, R)
    k = tl.arange(0, BLOCK_K)
    largest = tl.zeros((R,), tl.float32)
    square = tl.zeros((R,), tl.float64)
    for start in range(0, dim, BLOCK_K):
        c = _centred(x, stride, mean, i, start + k, rows, dim)
        largest = tl.maximum(largest, tl.max(tl.abs(c).to(tl.float32), 1))
        square += tl.sum(c * c, 1)
    trusted = square <= _LARGEST
    # The power of two above: the exponent's field_stride and one, in a float of its own.
    largest = tl.where(trusted, tl.maximum(largest, 2.0**-61), 1.0)
    exponent = (largest.to(tl.int32, bitcast=True) >> 23) + 1
    if SCALED:
        scale = tl.load(numbers + _SCALE * field_stride + i)
        exponent = scale.to(tl.int32, bitcast=True) >> 23
    scale = (exponent << 23).to(tl.float32, bitcast=True).to(tl.float64)
    inverse = ((254 - exponent) << 23).to(tl.float32, bitcast=True).to(tl.float64)
    norm = tl.zeros((R,), tl.float64)
    residual_square = tl.zeros((R,), tl.float64)
    for start in range(0, width, BLOCK_K):
        c = _centred(x, stride, mean, i, start + k, rows, dim)
        c = tl.where(trusted[:, None], c, 0.0)
        h = (c * inverse[:, None]).to(tl.float16)
        pointers = halves + i.to(tl.int64)[:, None] * width + (start + k)[None, :]
        tl.store(pointers, h, mask=((start + k) < width)[None, :])
        rounded = h.to(tl.float64) * scale[:, None]
        norm += tl.sum(rounded * rounded, 1)
        residual_square += tl.sum((c - rounded) * (c - rounded), 1)
    residual = tl.sqrt(residual_square) * (1 + _WIDER) + _TINY
    norm = tl.where(trusted, norm, square * 0 + _INF)
    row_mask = i < rows
    if not SCALED:
        tl.store(numbers + _SCALE * field_stride + i, tl.where(row_mask & trusted, scale, 0.0))
    tl.store(numbers + _RESIDUAL * field_stride + i, tl.where(row_mask & trusted, residual, 0.0))
    tl.store(numbers + _NORM * field_stride + i, tl.where(row_mask, norm, 0.0))
    tl.store(numbers + _SQUARE * field_stride + i, tl.where(row_mask, square, 0.0))
