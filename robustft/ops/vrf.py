"""vrf_mix: the sample-wise ensemble of VRF (arXiv 2411.06966)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robustft.backends.options import VrfOptions
from robustft.errors import InputError
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
    mixed: Tensor = _Vrf.apply(*logits, distance, *options, backend)
    return mixed


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
_backward = register(
    "vrf",
    "backward",
    (*_LOGITS, "Tensor grad", VrfOptions),
    "(Tensor, Tensor, Tensor)",
    _fake_backward,
)
