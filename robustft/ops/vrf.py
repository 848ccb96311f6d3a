"""vrf_mix: the sample-wise ensemble of VRF (arXiv 2411.06966)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robustft.backends.options import VrfOptions
from robustft.errors import InputError, InputTypeError
from robustft.ops import _checks
from robustft.ops._arrays import answers_in_kind
from robustft.ops._first_order import first_order
from robustft.ops._register import register
from robustft.ops._resolve import resolve


@answers_in_kind
def vrf_mix(
    logits_finetuned: Tensor,
    logits_zeroshot: Tensor,
    distance: Tensor,
    a: float,
    b: float,
    *,
    temperature_finetuned: float = 1.0,
    temperature_zeroshot: float = 1.0,
    log: bool = False,
    out: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Two classifiers mixed sample by sample: near the failure set, more of the fine-tuned one.

    ω = sigmoid(−(distance − a)/b), P = ω·softmax(logits_finetuned/temperature_finetuned)
    + (1−ω)·softmax(logits_zeroshot/temperature_zeroshot).

    Args:
        logits_finetuned, logits_zeroshot: [Q, K], float32, bfloat16, float16 or float64, any
            strides; different dtypes are promoted. −Inf masks a class out.
        distance: [Q], distance of each sample to the zero-shot-failure set, any of those dtypes.
        a: the distance at which ω = ½, in the distance's unit.
        b: the width of the transition, in the distance's unit, above 0.
        temperature_finetuned, temperature_zeroshot: divide the logits, above 0.
        log: return log P, finite where P underflows.
        out: where the result goes, [Q, K] in its dtype, and what is returned; one of the logits may
            be it. Where no gradient is asked for. A result of hundreds of megabytes takes less time
            where memory is already there.
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        P or log P, [Q, K], in the promoted dtype of the logits, computed in float32 (float64 for
        float64). Gradients flow to both logits and the distance; a, b and the temperatures are
        constants. A NaN or +Inf in a row's logits, or a NaN distance, makes that row NaN.

    Errors: InputError or InputTypeError for bad shapes, dtypes, devices, numbers or backend.
    Gradients have no gradients: a gradient penalty is an InputError.
    """
    _checks.matrix("logits_finetuned", logits_finetuned, rows="Q", columns="K")
    _checks.matrix("logits_zeroshot", logits_zeroshot, rows="Q", columns="K", like=logits_finetuned)
    _checks.floating("distance", distance)
    if distance.shape != logits_finetuned.shape[:1]:
        raise InputError(
            f"distance: got shape {tuple(distance.shape)}, expected [{len(logits_finetuned)}], "
            "one per row of logits_finetuned"
        )
    _checks.same_device("distance", distance, logits_finetuned)
    options = VrfOptions(
        _checks.finite("a", a),
        _checks.positive("b", b),
        _checks.positive("temperature_finetuned", temperature_finetuned),
        _checks.positive("temperature_zeroshot", temperature_zeroshot),
        bool(log),
    )
    logits = _checks.common_dtype(logits_finetuned, logits_zeroshot)
    backend = resolve("vrf", logits[0], backend)
    if out is not None:
        _check_out(out, logits, distance)
        if out.is_contiguous():
            _forward_into(*logits, distance, out, *options, backend)
            return out
        return out.copy_(_forward(*logits, distance, *options, backend))
    mixed: Tensor = _Vrf.apply(*logits, distance, *options, backend)
    return mixed


def _check_out(out: object, logits: tuple[Tensor, ...], distance: Tensor) -> None:
    """Raise where `out` cannot take the result, or would change what is still to be read."""
    like = logits[0]
    if not isinstance(out, Tensor):
        raise InputTypeError(f"out: got {type(out).__name__}, expected a torch.Tensor")
    if out.shape != like.shape or out.dtype != like.dtype or out.device != like.device:
        raise InputError(
            f"out: got {out.dtype} of shape {tuple(out.shape)} on {out.device}, expected "
            f"{like.dtype} of shape {tuple(like.shape)} on {like.device}"
        )
    inputs = (*logits, distance)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (out, *inputs)):
        raise InputError("out: got a tensor where gradients are asked for, expected None")
    if torch.compiler.is_compiling():
        return
    begin, end = _extent(out)
    for x in inputs:
        first, last = _extent(x)
        same = first == begin and x.stride() == out.stride() and x is not distance
        if first < end and begin < last and not same:
            raise InputError("out: got memory that an input shares, expected other, or the logits")


def _extent(x: Tensor) -> tuple[int, int]:
    """The addresses of the first and behind the last element."""
    last = sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True))
    return x.data_ptr(), x.data_ptr() + (last + 1) * x.element_size()


class _Vrf(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, finetuned: Tensor, zeroshot: Tensor, distance: Tensor, *rest: Any
    ) -> Tensor:
        ctx.save_for_backward(finetuned, zeroshot, distance)
        ctx.rest = rest
        mixed: Tensor = _forward(finetuned, zeroshot, distance, *rest)
        return mixed

    @staticmethod
    @first_order("vrf_mix")
    def backward(ctx: Any, grad: Tensor) -> Any:
        return *_backward(*ctx.saved_tensors, grad, *ctx.rest), *(None,) * len(ctx.rest)


def _fake_forward(finetuned: Tensor, *_: Any) -> Tensor:
    return finetuned.new_empty(finetuned.shape)


def _fake_backward(
    finetuned: Tensor, zeroshot: Tensor, distance: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        finetuned.new_empty(finetuned.shape),
        zeroshot.new_empty(zeroshot.shape),
        distance.new_empty(distance.shape),
    )


_LOGITS = ("Tensor logits_finetuned", "Tensor logits_zeroshot", "Tensor distance")
_forward = register("vrf", "forward", (*_LOGITS, VrfOptions), "Tensor", _fake_forward)
_forward_into = register(
    "vrf", "forward_into", (*_LOGITS, "Tensor(a!) out", VrfOptions), "()", lambda *_: None
)
_backward = register(
    "vrf",
    "backward",
    (*_LOGITS, "Tensor grad", VrfOptions),
    "(Tensor, Tensor, Tensor)",
    _fake_backward,
)
