"""dive_loss: the average and pairwise vector losses of DiVE (arXiv 2511.09973)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robustft.backends.tensors import sum_dtype
from robustft.errors import InputError
from robustft.ops import _checks
from robustft.ops._arrays import answers_in_kind
from robustft.ops._first_order import first_order
from robustft.ops._ranks import (
    Ranks,
    TotalOverRanks,
    as_float,
    as_int,
    expect_agreement,
    outside_graphs,
)
from robustft.ops._register import register
from robustft.ops._resolve import resolve

_AGREED = (("width of the features", int), ("momentum", as_float), ("normalize", bool))


@answers_in_kind
def dive_loss(
    image: Tensor,
    image_pretrained: Tensor,
    text: Tensor,
    text_pretrained: Tensor,
    mean: Tensor,
    *,
    momentum: float = 0.99,
    normalize: bool = True,
    group: Any = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Average and pairwise vector loss of a reference batch, and the new average vector.

    With u = n(image) − n(image_pretrained), v = n(text) − n(text_pretrained):
    m = momentum·mean + (1−momentum)·mean of all u and v,
    AVL = mean_j(|u_j − m|² + |v_j − m|²), PVL = mean_j |u_j − v_j|².

    Args:
        image, image_pretrained, text, text_pretrained: [B, D], float32, bfloat16, float16 or
            float64, any strides; row j of each belongs to the same image–text pair. Different
            dtypes are promoted. Sums are kept in float32 (float64 for float64).
        mean: [D], the average vector after the last step; zeros at the start.
        momentum: α in [0, 1]; 0 makes m the mean of this batch.
        normalize: L2-normalise all four first (inside the kernel, in both directions).
        group: a torch.distributed.ProcessGroup over whose ranks the batch is spread, each with
            its own rows; momentum and `mean` are the same on all. Every rank returns the whole
            batch's losses and average; gradients are W times those of the losses (W ranks), for
            DistributedDataParallel's mean over ranks. None: one process.
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        (avl, pvl, new_mean): two scalars and [D], float32 (float64 for float64 features).
        Gradients flow from avl and pvl to image and text; m is a constant.

    Errors: InputError or InputTypeError for bad shapes, dtypes, devices, momentum or backend.
    Gradients have no gradients: a gradient penalty is an InputError.
    """
    _checks.matrix("image", image, rows="B")
    _checks.matrix("image_pretrained", image_pretrained, rows="B", like=image)
    _checks.matrix("text", text, rows="B", like=image)
    _checks.matrix("text_pretrained", text_pretrained, rows="B", like=image)
    _checks.floating("mean", mean)
    if mean.shape != image.shape[1:]:
        raise InputError(f"mean: got shape {tuple(mean.shape)}, expected [{image.shape[1]}]")
    _checks.same_device("mean", mean, image)
    momentum = _checks.unit_interval("momentum", momentum)
    features = _checks.common_dtype(image, image_pretrained, text, text_pretrained)
    backend = resolve("dive", features[0], backend)
    if group is not None:
        return _over_ranks(features, mean, momentum, bool(normalize), backend, Ranks(group))
    avl, pvl, new_mean = _Dive.apply(*features, mean, momentum, bool(normalize), backend)
    return avl, pvl, new_mean


@outside_graphs
def _over_ranks(
    features: tuple[Tensor, ...],
    mean: Tensor,
    momentum: float,
    normalize: bool,
    backend: str,
    ranks: Ranks,
) -> tuple[Tensor, Tensor, Tensor]:
    """The average of all ranks first; then each rank's rows about it, and the sum over ranks."""
    rows, width = features[0].shape
    told = ranks.facts([width, as_int(momentum), normalize], mean.device)
    expect_agreement(_AGREED, told)
    with torch.no_grad():
        *_, mine = _Dive.apply(*features, mean, 0.0, normalize, backend)
        sums = ranks.sum(rows * torch.cat([mine.double(), mine.new_ones(1)]))
        batch_mean, count = sums[:-1] / sums[-1], sums[-1]
        new_mean = (momentum * mean.double() + (1 - momentum) * batch_mean).to(mine.dtype)
    avl, pvl, _ = _Dive.apply(*features, new_mean, 1.0, normalize, backend)
    avl, pvl = TotalOverRanks.apply(torch.stack([avl, pvl]) * (rows / count).to(avl.dtype), ranks)
    return avl, pvl, new_mean


class _Dive(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        f: Tensor,
        f0: Tensor,
        g: Tensor,
        g0: Tensor,
        mean: Tensor,
        momentum: float,
        normalize: bool,
        backend: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        avl, pvl, new_mean = _forward(f, f0, g, g0, mean, momentum, normalize, backend)
        ctx.save_for_backward(f, f0, g, g0, new_mean)
        ctx.normalize, ctx.backend = normalize, backend
        ctx.mark_non_differentiable(new_mean)
        ctx.set_materialize_grads(False)  # or new_mean would get zeros at every step
        return avl, pvl, new_mean

    @staticmethod
    @first_order("dive_loss")
    def backward(ctx: Any, grad_avl: Tensor | None, grad_pvl: Tensor | None, _: None) -> Any:
        if grad_avl is None or grad_pvl is None:  # only one of the losses is used
            zero = ctx.saved_tensors[-1].new_zeros(())
            grad_avl, grad_pvl = (zero if g is None else g for g in (grad_avl, grad_pvl))
        grad_f, grad_g = _backward(
            *ctx.saved_tensors, grad_avl, grad_pvl, ctx.normalize, ctx.backend
        )
        return grad_f, None, grad_g, None, None, None, None, None


def _fake_forward(f: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    dtype = sum_dtype(f)
    return (
        f.new_empty((), dtype=dtype),
        f.new_empty((), dtype=dtype),
        f.new_empty(f.shape[1:], dtype=dtype),
    )


def _fake_backward(f: Tensor, f0: Tensor, g: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return f.new_empty(f.shape), g.new_empty(g.shape)


_INPUTS = ("Tensor image", "Tensor image_pretrained", "Tensor text", "Tensor text_pretrained")
_forward = register(
    "dive",
    "forward",
    (*_INPUTS, "Tensor mean", "float momentum", "bool normalize"),
    "(Tensor, Tensor, Tensor)",
    _fake_forward,
)
_backward = register(
    "dive",
    "backward",
    (*_INPUTS, "Tensor new_mean", "Tensor grad_avl", "Tensor grad_pvl", "bool normalize"),
    "(Tensor, Tensor)",
    _fake_backward,
)
