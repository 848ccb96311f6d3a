"""mpm_nce on the CPU (csrc/cpu/mpm_nce/mpm_nce.cpp)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robustft import _native
from robustft.backends.cpu.pointers import CODES, empty
from robustft.backends.options import MpmNceOptions, Positives
from robustft.backends.tensors import expect, expect_contrast, unit_stride

_STATISTICS = 4  # kMpmNceStatistics in csrc/cpu/mpm_nce/mpm_nce.hpp

_ALL = 1 << 62  # bytes: products of any size are kept
_LARGE = 1 << 20  # floats: what the C library would give back to the system after each step


def saved_shapes(
    rows: int, columns: int, symmetric: bool, keep_logits: int
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """What forward returns for backward: statistics of rows and columns, the products if kept.

    The products are kept where B·C of them, in float32, fit `keep_logits` bytes; they are stored
    as whole tiles of the kernels, which takes up to 95 rows and 31 columns more.
    """
    fit = 4 * rows * columns <= keep_logits
    kept = -(-rows // 96) * 96 * (-(-columns // 32) * 32) if fit else 0  # mpm_nce_kept there
    return (_STATISTICS, rows), (_STATISTICS, columns if symmetric else 0), (kept,)


def forward(
    image: Tensor,
    text: Tensor,
    positives: Positives,
    scale: Tensor,
    options: MpmNceOptions,
    keep_logits: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, row statistics, column statistics, kept products), float32; see `saved_shapes`."""
    shapes = saved_shapes(image.shape[0], text.shape[0], options.symmetric, keep_logits)
    loss = torch.empty_like(scale)
    row_statistics, column_statistics = (scale.new_empty(shape) for shape in shapes[:2])
    (count,) = shapes[2]
    # Large ones come from memory that stays with the process from step to step.
    large = count >= _LARGE
    kept = _native.mpm_nce_products_room(count) if large else scale.new_empty(count)
    alive, arguments = _problem(image, text, positives, scale, options)
    _native.mpm_nce_forward(
        *arguments, *(x.data_ptr() for x in (kept, loss, row_statistics, column_statistics))
    )
    del alive
    return loss, row_statistics, column_statistics, kept


def backward(
    image: Tensor,
    text: Tensor,
    positives: Positives,
    scale: Tensor,
    row_statistics: Tensor,
    column_statistics: Tensor,
    kept: Tensor,
    grad: Tensor,
    options: MpmNceOptions,
    need_image: bool,
    need_text: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to image, text (contiguous, in their dtype; empty if not needed) and scale."""
    alive, arguments = _problem(image, text, positives, scale, options)
    shapes = saved_shapes(image.shape[0], text.shape[0], options.symmetric, _ALL)
    expect("row_statistics", row_statistics, torch.float32, shapes[0], on_cpu=True)
    expect("column_statistics", column_statistics, torch.float32, shapes[1], on_cpu=True)
    expect("kept", kept, torch.float32, shapes[2] if kept.numel() else (0,), on_cpu=True)
    expect("grad", grad, torch.float32, (), on_cpu=True)
    row_statistics, column_statistics = row_statistics.contiguous(), column_statistics.contiguous()
    kept = kept.contiguous()
    grad_image = empty(image.shape if need_image else (0,), image.dtype)
    grad_text = empty(text.shape if need_text else (0,), text.dtype)
    grad_scale = torch.empty_like(scale)
    rest = (
        kept.data_ptr(),
        row_statistics.data_ptr(),
        column_statistics.data_ptr(),
        grad.item(),
        grad_image.data_ptr(),
        grad_text.data_ptr(),
        grad_scale.data_ptr(),
    )
    _native.mpm_nce_backward(*arguments + rest)
    del alive
    return grad_image, grad_text, grad_scale


def _problem(
    image: Tensor,
    text: Tensor,
    positives: Positives,
    scale: Tensor,
    options: MpmNceOptions,
) -> tuple[tuple[Tensor | None, ...], Any]:
    """The common arguments of the native functions, and the tensors that must outlive the call."""
    expect_contrast(image, text, *positives[:3], scale, options.symmetric, options.exclude_self)
    rows, columns = image.shape[0], text.shape[0]
    expect("image", image, image.dtype, image.shape, on_cpu=True)  # and so all of them
    (x, y), dtype = unit_stride(image, text), CODES[image.dtype]
    a, b, m = [pair if pair is None else pair.contiguous() for pair in positives[:3]]
    arguments = (
        x.data_ptr(),
        x.stride(0),
        y.data_ptr(),
        y.stride(0),
        rows,
        columns,
        x.shape[1],
        dtype,
        0 if a is None else a.data_ptr(),
        0 if b is None else b.data_ptr(),
        0 if m is None else m.data_ptr(),
        positives.ignore_index,
        scale.item(),
        *options,
        torch.get_num_threads(),
    )
    return (x, y, a, b, m), arguments
