"""dive_loss on a GPU (DiVE, arXiv 2511.09973): two launches forward, one backward.

    u = n(f) − n(f0),  v = n(g) − n(g0),  m = α·m_prev + (1−α)·mean of all u and v
    AVL = (1/B) Σ (|u − m|² + |v − m|²),  PVL = (1/B) Σ |u − v|²

Forward reads 4·B·D elements once. m is known only at the end, so each program sums about a centre c
of its own, the mean of u and v in its first row, and the second launch moves the sums to m:
Σ|u − m|² = Σ|u − c|² − 2<Σ(u − c), δ> + n|δ|², δ = m − c, which a shift shared by all rows cannot
cancel. Backward reads the four inputs once more and writes two gradients; nothing is kept between.

Order. Rows are cut by the shape alone, partial sums are merged in index order, and the last program
of the second launch, found by an integer counter, adds the scalars: same inputs, same bits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from robustft.backends.reference import dive as reference
from robustft.backends.tensors import expect_floats, expect_matrices, unit_stride
from robustft.kernels.configs import bucket, config
from robustft.kernels.dive_merge import forward_merge
from robustft.kernels.dive_rows import COUNTER, backward_rows, forward_rows
from robustft.kernels.launch import Launch, planned

MAX_DIM = 8192  # a row is held in registers; longer ones run the reference
_PROGRAMS = 528  # four for each of 132 multiprocessors: enough to fill any card
_COLUMNS = 64  # of one program of the second launch


class _Forward(NamedTuple):
    rows: Launch
    merge: Launch
    scratch: int  # words


@planned
def _forward_plan(
    device: torch.device,
    dtype: torch.dtype,
    _mean: torch.dtype,
    rows: int,
    dim: int,
    strides: tuple[int, ...],
    mean_stride: int,
    normalize: bool,
) -> _Forward:
    options = config("dive", device, dtype, dim)
    rows_each = max(options["BLOCK_R"], triton.cdiv(rows, _PROGRAMS))
    programs, merges = triton.cdiv(rows, rows_each), triton.cdiv(dim, _COLUMNS)
    return _Forward(
        Launch(
            forward_rows, (programs,), *strides, rows, dim, rows_each,
            NORMALIZE=normalize, BLOCK_D=bucket(dim), **options,
        ),
        Launch(
            forward_merge, (merges,), mean_stride, rows, dim, rows_each, programs,
            BLOCK_P=64, BLOCK_C=_COLUMNS, MERGES=bucket(merges), num_warps=4,
        ),
        COUNTER.value + 2 * programs * (dim + 1) + merges,
    )  # fmt: skip


@planned
def _backward_plan(
    device: torch.device,
    dtypes: tuple[torch.dtype, ...],
    rows: int,
    dim: int,
    strides: tuple[int, ...],
    normalize: bool,
) -> Launch:
    options = config("dive", device, dtypes[0], dim)
    return Launch(
        backward_rows, (triton.cdiv(rows, options["BLOCK_R"]),), *strides, rows, dim,
        NORMALIZE=normalize, BLOCK_D=bucket(dim), **options,
    )  # fmt: skip


def forward(
    image: Tensor,
    image_pretrained: Tensor,
    text: Tensor,
    text_pretrained: Tensor,
    mean: Tensor,
    momentum: float,
    normalize: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(AVL, PVL, new mean), float32."""
    expect_matrices(
        image=image, image_pretrained=image_pretrained, text=text, text_pretrained=text_pretrained
    )
    expect_floats("mean", mean, image.shape[1:], image)
    if image.shape[1] > MAX_DIM:
        return reference.forward(
            image, image_pretrained, text, text_pretrained, mean, momentum, normalize
        )
    f, f0, g, g0 = unit_stride(image, image_pretrained, text, text_pretrained)
    strides = f.stride(0), f0.stride(0), g.stride(0), g0.stride(0)
    plan = _forward_plan(
        f.device, f.dtype, mean.dtype, *f.shape, strides, mean.stride(0), normalize
    )
    scratch = f.new_empty(plan.scratch, dtype=torch.float32)
    avl = f.new_empty((), dtype=torch.float32)
    pvl = f.new_empty((), dtype=torch.float32)
    new_mean = f.new_empty(f.shape[1], dtype=torch.float32)
    plan.rows(f, f0, g, g0, scratch)
    plan.merge(scratch, mean, avl, pvl, new_mean, floats=(momentum,))
    return avl, pvl, new_mean


def backward(
    image: Tensor,
    image_pretrained: Tensor,
    text: Tensor,
    text_pretrained: Tensor,
    new_mean: Tensor,
    grad_avl: Tensor,
    grad_pvl: Tensor,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients to image and text, contiguous, in their dtype."""
    expect_matrices(
        image=image, image_pretrained=image_pretrained, text=text, text_pretrained=text_pretrained
    )
    expect_floats("new_mean", new_mean, image.shape[1:], image)
    expect_floats("grad_avl", grad_avl, (), image)
    expect_floats("grad_pvl", grad_pvl, (), image)
    if image.shape[1] > MAX_DIM:
        return reference.backward(
            image, image_pretrained, text, text_pretrained, new_mean, grad_avl, grad_pvl, normalize
        )
    f, f0, g, g0 = unit_stride(image, image_pretrained, text, text_pretrained)
    strides = f.stride(0), f0.stride(0), g.stride(0), g0.stride(0)
    dtypes = f.dtype, new_mean.dtype, grad_avl.dtype, grad_pvl.dtype
    grad_f, grad_g = f.new_empty(f.shape), g.new_empty(g.shape)
    launch = _backward_plan(f.device, dtypes, *f.shape, strides, normalize)
    launch(f, f0, g, g0, new_mean.contiguous(), grad_avl, grad_pvl, grad_f, grad_g)
    return grad_f, grad_g
