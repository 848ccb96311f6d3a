"""dive_loss on the CPU (csrc/cpu/dive.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from robustft import _native
from robustft.backends.cpu.pointers import empty, matrices, vector


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
    (f, f0, g, g0), dtype = matrices(
        image=image, image_pretrained=image_pretrained, text=text, text_pretrained=text_pretrained
    )
    rows, dim = f.shape
    mean = vector("mean", mean, dim)
    avl, pvl = mean.new_empty(()), mean.new_empty(())
    new_mean = mean.new_empty(dim)
    _native.dive_forward(
        *_addresses(f, f0, g, g0),
        rows,
        dim,
        dtype,
        normalize,
        torch.get_num_threads(),
        mean.data_ptr(),
        momentum,
        avl.data_ptr(),
        pvl.data_ptr(),
        new_mean.data_ptr(),
    )
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
    (f, f0, g, g0), dtype = matrices(
        image=image, image_pretrained=image_pretrained, text=text, text_pretrained=text_pretrained
    )
    rows, dim = f.shape
    new_mean = vector("new_mean", new_mean, dim)
    grad_f, grad_g = empty((rows, dim), f.dtype), empty((rows, dim), g.dtype)
    _native.dive_backward(
        *_addresses(f, f0, g, g0),
        rows,
        dim,
        dtype,
        normalize,
        torch.get_num_threads(),
        new_mean.data_ptr(),
        float(grad_avl),
        float(grad_pvl),
        grad_f.data_ptr(),
        grad_g.data_ptr(),
    )
    return grad_f, grad_g


def _addresses(
    f: Tensor, f0: Tensor, g: Tensor, g0: Tensor
) -> tuple[int, int, int, int, int, int, int, int]:
    return (
        f.data_ptr(),
        f.stride(0),
        f0.data_ptr(),
        f0.stride(0),
        g.data_ptr(),
        g.stride(0),
        g0.data_ptr(),
        g0.stride(0),
    )
