"""vrf_mix on a GPU (VRF, arXiv 2411.06966): one launch each way, a row of logits per program.

    ω = sigmoid(−(d − a)/b),   P = ω·softmax(z_ft/T_ft) + (1 − ω)·softmax(z_zs/T_zs)

Forward reads 2·Q·K logits and writes Q·K; backward reads 3·Q·K and writes 2·Q·K. A row is loaded
whole into registers, so both softmaxes, the weight and the mix see memory once.

log P = logaddexp(log ω + log softmax(z_ft/T_ft), log(1 − ω) + log softmax(z_zs/T_zs)): finite
where a probability underflows. A class whose logit is −Inf has probability 0 and log −Inf; a NaN, a
+Inf, or a row of −Inf alone makes its whole row NaN. Arithmetic is float32.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from robustft.backends.options import VrfOptions
from robustft.backends.reference import vrf as reference
from robustft.backends.tensors import (
    expect_contiguous,
    expect_floats,
    expect_matrices,
    unit_stride,
)
from robustft.kernels.configs import bucket, config
from robustft.kernels.launch import Launch, planned

MAX_CLASSES = 8192  # a row is held in registers; longer ones run the reference


@triton.jit
def _log1p(y):
    """ln(1 + y) for y ≥ 0 without losing small y: rounding of 1 + y is divided out."""
    one = 1.0 + y
    safe = tl.where(one == 1.0, 2.0, one)
    return tl.where(one == 1.0, y, tl.log(safe) * (y / (safe - 1.0)))


@triton.jit
def _weights(distance, a, b):
    """ω and 1 − ω with their logarithms, each from its own formula: neither loses digits."""
    t = (distance - a) / b
    e = tl.exp(-tl.abs(t))
    large, small = 1.0 / (1.0 + e), e / (1.0 + e)
    log_large = -_log1p(e)
    log_small = log_large - tl.abs(t)
    far = t > 0
    return (
        tl.where(far, small, large),
        tl.where(far, large, small),
        tl.where(far, log_small, log_large),
        tl.where(far, log_large, log_small),
    )


@triton.jit
def _softmax(logits, k, classes, rate):
    """A row over its temperature and about its maximum, the exponentials, and their sum."""
    z = tl.load(logits + k, mask=k < classes, other=float("-inf")).to(tl.float32)
    z = (z - tl.max(z, 0)) * rate
    e = tl.exp(z)
    return z, e, tl.sum(e, 0)


@triton.jit
def forward_rows(
    finetuned, zeroshot, distance, out, a, b, rate_finetuned, rate_zeroshot,
    finetuned_stride, zeroshot_stride, distance_stride, classes,
    LOG: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK_K)
    d = tl.load(distance + i * distance_stride).to(tl.float32)
    omega, rest, log_omega, log_rest = _weights(d, a, b)
    z, p, total_p = _softmax(finetuned + i * finetuned_stride, k, classes, rate_finetuned)
    y, q, total_q = _softmax(zeroshot + i * zeroshot_stride, k, classes, rate_zeroshot)
    if LOG:
        log_p = z + (log_omega - tl.log(total_p))
        log_q = y + (log_rest - tl.log(total_q))
        top = tl.maximum(log_p, log_q, propagate_nan=tl.PropagateNan.ALL)
        gap = tl.where(log_p == log_q, 0.0, tl.abs(log_p - log_q))  # two −Inf are equal
        mixed = top + _log1p(tl.exp(-gap))
    else:
        mixed = (omega / total_p) * p + (rest / total_q) * q
    tl.store(out + i * classes + k, mixed.to(out.dtype.element_ty), mask=k < classes)


@triton.jit
def backward_rows(
    finetuned, zeroshot, distance, grad, grad_finetuned, grad_zeroshot, grad_distance,
    a, b, rate_finetuned, rate_zeroshot,
    finetuned_stride, zeroshot_stride, distance_stride, grad_stride, classes,
    LOG: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Of P: ∂z_ft = (ω/T)·p∘(G − <G, p>), ∂d = −<G, p − q>·ω(1−ω)/b. Of log P, with r = ω·p/P:
    ∂z_ft = (1/T)·(G∘r − p·<G, r>), ∂d = (ω·<G, 1−r> − (1−ω)·<G, r>)/b."""
    i = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK_K)
    class_mask = k < classes
    d = tl.load(distance + i * distance_stride).to(tl.float32)
    omega, rest, log_omega, log_rest = _weights(d, a, b)
    z, p, total_p = _softmax(finetuned + i * finetuned_stride, k, classes, rate_finetuned)
    y, q, total_q = _softmax(zeroshot + i * zeroshot_stride, k, classes, rate_zeroshot)
    g = tl.load(grad + i * grad_stride + k, mask=class_mask, other=0.0).to(tl.float32)
    p = p / total_p
    q = q / total_q
    if LOG:
        log_p = z + (log_omega - tl.log(total_p))
        log_q = y + (log_rest - tl.log(total_q))
        masked = tl.maximum(log_p, log_q) == float("-inf")
        e = tl.exp(-tl.where(log_p == log_q, 0.0, tl.abs(log_p - log_q)))
        large, small = 1.0 / (1.0 + e), e / (1.0 + e)
        r = tl.where(masked, 0.0, tl.where(log_p > log_q, large, small))
        s = tl.where(masked, 0.0, tl.where(log_p > log_q, small, large))
        along_r, along_s = tl.sum(g * r, 0), tl.sum(g * s, 0)
        dz = g * r - p * along_r
        dy = g * s - q * along_s
        dd = (omega * along_s - rest * along_r) / b
    else:
        along_p, along_q = tl.sum(g * p, 0), tl.sum(g * q, 0)
        dz = omega * p * (g - along_p)
        dy = rest * q * (g - along_q)
        dd = (along_q - along_p) * omega * rest / b
    dz = (dz * rate_finetuned).to(grad_finetuned.dtype.element_ty)
    dy = (dy * rate_zeroshot).to(grad_zeroshot.dtype.element_ty)
    tl.store(grad_finetuned + i * classes + k, dz, mask=class_mask)
    tl.store(grad_zeroshot + i * classes + k, dy, mask=class_mask)
    tl.store(grad_distance + i, dd.to(grad_distance.dtype.element_ty))


@planned
def _plan(
    function: Any,
    device: torch.device,
    dtypes: tuple[torch.dtype, ...],
    rows: int,
    classes: int,
    strides: tuple[int, ...],
    log: bool,
) -> Launch:
    options = config("vrf", device, dtypes[0], classes)
    return Launch(function, (rows,), *strides, classes, LOG=log, BLOCK_K=bucket(classes), **options)


def forward(
    logits_finetuned: Tensor,
    logits_zeroshot: Tensor,
    distance: Tensor,
    options: VrfOptions,
) -> Tensor:
    """(Log-)probabilities [Q, K], contiguous, in the logits' dtype."""
    out = logits_finetuned.new_empty(logits_finetuned.shape)
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
    expect_matrices(logits_finetuned=logits_finetuned, logits_zeroshot=logits_zeroshot, out=out)
    expect_contiguous("out", out)
    expect_floats("distance", distance, logits_finetuned.shape[:1], logits_finetuned)
    if logits_finetuned.shape[1] > MAX_CLASSES:
        return reference.forward_into(logits_finetuned, logits_zeroshot, distance, out, options)
    a, b, temperature_finetuned, temperature_zeroshot, log = options
    z, y = unit_stride(logits_finetuned, logits_zeroshot)
    strides = z.stride(0), y.stride(0), distance.stride(0)
    launch = _plan(forward_rows, z.device, (z.dtype, distance.dtype), *z.shape, strides, log)
    rates = 1 / temperature_finetuned, 1 / temperature_zeroshot
    launch(z, y, distance, out, floats=(a, b, *rates))


def backward(
    logits_finetuned: Tensor,
    logits_zeroshot: Tensor,
    distance: Tensor,
    grad: Tensor,
    options: VrfOptions,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to both logits, contiguous, in their dtype, and to the distance, in its dtype."""
    expect_matrices(logits_finetuned=logits_finetuned, logits_zeroshot=logits_zeroshot, grad=grad)
    expect_floats("distance", distance, logits_finetuned.shape[:1], logits_finetuned)
    if logits_finetuned.shape[1] > MAX_CLASSES:
        return reference.backward(logits_finetuned, logits_zeroshot, distance, grad, options)
    a, b, temperature_finetuned, temperature_zeroshot, log = options
    z, y, g = unit_stride(logits_finetuned, logits_zeroshot, grad)
    dz, dy, dd = z.new_empty(z.shape), y.new_empty(y.shape), distance.new_empty(distance.shape)
    strides = z.stride(0), y.stride(0), distance.stride(0), g.stride(0)
    dtypes = z.dtype, distance.dtype, g.dtype
    launch = _plan(backward_rows, z.device, dtypes, *z.shape, strides, log)
    rates = 1 / temperature_finetuned, 1 / temperature_zeroshot
    launch(z, y, distance, g, dz, dy, dd, floats=(a, b, *rates))
    return dz, dy, dd
