"""vrf_mix on the CPU (csrc/cpu/vrf.cpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from robustft import _native
from robustft.backends.cpu.pointers import empty, matrices, vector
from robustft.backends.options import VrfOptions
from robustft.backends.tensors import expect_contiguous


def forward(
    logits_finetuned: Tensor,
    logits_zeroshot: Tensor,
    distance: Tensor,
    options: VrfOptions,
) -> Tensor:
    """(Log-)probabilities [Q, K], contiguous, in the logits' dtype."""
    out = empty(tuple(logits_finetuned.shape), logits_finetuned.dtype)
    forward_into(logits_finetuned, logits_zeroshot, distance, out, options)
    return out


def forward_into(
    logits_finetuned: Tensor,
    logits_zeroshot: Tensor,
    distance: Tensor,
    out: Tensor,
    options: VrfOptions,
) -> None:
    """As `forward`, into a contiguous tensor; it may be one of the logits."""
    expect_contiguous("out", out)
    (finetuned, zeroshot, out), dtype = matrices(
        logits_finetuned=logits_finetuned, logits_zeroshot=logits_zeroshot, out=out
    )
    rows, classes = finetuned.shape
    distance = vector("distance", distance, rows)
    _native.vrf_forward(
        finetuned.data_ptr(),
        finetuned.stride(0),
        zeroshot.data_ptr(),
        zeroshot.stride(0),
        distance.data_ptr(),
        rows,
        classes,
        *options[:-1],
        dtype,
        options.log,
        torch.get_num_threads(),
        out.data_ptr(),
    )


def backward(
    logits_finetuned: Tensor,
    logits_zeroshot: Tensor,
    distance: Tensor,
    grad: Tensor,
    options: VrfOptions,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to both logits, contiguous, in their dtype, and to the distance, in its dtype."""
    (finetuned, zeroshot, grad), dtype = matrices(
        logits_finetuned=logits_finetuned, logits_zeroshot=logits_zeroshot, grad=grad
    )
    rows, classes = finetuned.shape
    distance32 = vector("distance", distance, rows)
    grad_finetuned = empty((rows, classes), finetuned.dtype)
    grad_zeroshot = empty((rows, classes), zeroshot.dtype)
    grad_distance = distance32.new_empty(rows)
    _native.vrf_backward(
        finetuned.data_ptr(),
        finetuned.stride(0),
        zeroshot.data_ptr(),
        zeroshot.stride(0),
        distance32.data_ptr(),
        rows,
        classes,
        *options[:-1],
        dtype,
        options.log,
        torch.get_num_threads(),
        grad.data_ptr(),
        grad.stride(0),
        grad_finetuned.data_ptr(),
        grad_zeroshot.data_ptr(),
        grad_distance.data_ptr(),
    )
    return grad_finetuned, grad_zeroshot, grad_distance.to(distance.dtype)
