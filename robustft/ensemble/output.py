"""Output-space ensembling (OSE): one fixed weight for every sample.

    P(y|x) = α·softmax(z_ft/T_ft) + (1-α)·softmax(z_zs/T_zs)

The ablation `space="logit"` mixes the logits instead: softmax(α·z_ft/T_ft + (1-α)·z_zs/T_zs).
As in VRF's paper (arXiv 2411.06966, section 3.1) the temperatures are 1 unless given; passing
VRF's temperatures gives the constant-weight baseline with VRF's calibration.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from robustft.ensemble._checks import (
    check_alpha,
    check_choice,
    check_logits,
    check_positive,
    spread_columns,
    subset_index,
)


def output_ensemble(
    logits_finetuned: Tensor,
    logits_zeroshot: Tensor,
    alpha: float,
    *,
    temperature_finetuned: float = 1.0,
    temperature_zeroshot: float = 1.0,
    space: Literal["probability", "logit"] = "probability",
    class_subset: Tensor | Sequence[int] | None = None,
    log: bool = False,
) -> Tensor:
    """Mix two models' outputs with weight `alpha` on the fine-tuned one.

    Args:
        logits_finetuned, logits_zeroshot: [N, C], any floating dtype; computed in float32
            (float64 if either is).
        alpha: 0 is the zero-shot model, 1 the fine-tuned one; there the other is not looked at.
        class_subset: class indices of data sets that have some of the classes only: the others
            are taken out before the softmax and come back with probability 0.
        log: return log-probabilities.

    Returns: [N, C] probabilities.

    Errors: InputError for shapes, alpha outside [0, 1], temperatures that are not positive.
    """
    check_logits("logits_finetuned", logits_finetuned)
    check_logits("logits_zeroshot", logits_zeroshot, *logits_finetuned.shape)
    alpha = check_alpha(alpha)
    temperatures = (
        check_positive("temperature_finetuned", temperature_finetuned),
        check_positive("temperature_zeroshot", temperature_zeroshot),
    )
    check_choice("space", space, ("probability", "logit"))
    classes = logits_finetuned.shape[1]
    index = subset_index(class_subset, classes)
    if index is not None:
        logits_finetuned = logits_finetuned[:, index.to(logits_finetuned.device)]
        logits_zeroshot = logits_zeroshot[:, index.to(logits_zeroshot.device)]
    if alpha == 0.0:  # at either end the other model is not looked at, NaN or not
        logits_finetuned = logits_zeroshot
        temperatures = (temperatures[1], temperatures[1])
    elif alpha == 1.0:
        logits_zeroshot = logits_finetuned
        temperatures = (temperatures[0], temperatures[0])
    weight = torch.full((len(logits_finetuned),), alpha, dtype=torch.float64)
    log_p = mix(logits_finetuned, logits_zeroshot, weight, temperatures=temperatures, space=space)
    if log:
        return spread_columns(log_p, index, classes, -math.inf)
    return spread_columns(log_p.exp(), index, classes, 0.0)


def mix(
    logits_finetuned: Tensor,
    logits_zeroshot: Tensor,
    weight: Tensor,
    *,
    temperatures: tuple[float, float],
    space: str,
) -> Tensor:
    """log P [N, C] of two models' logits, the fine-tuned one with the weight ω [N] in [0, 1].

    "probability": ω·softmax(z_ft/T_ft) + (1-ω)·softmax(z_zs/T_zs); "logit": softmax of
    ω·z_ft/T_ft + (1-ω)·z_zs/T_zs. In float32, or float64 where either model's logits are. -Inf
    masks a class out; a NaN anywhere in a row makes that row NaN.
    """
    dtype = torch.promote_types(
        torch.promote_types(logits_finetuned.dtype, logits_zeroshot.dtype), torch.float32
    )
    w = weight.to(logits_finetuned.device).unsqueeze(1)
    share = (w.to(dtype), (1 - w).to(dtype))
    z = [
        logits.to(dtype) / temperature
        for logits, temperature in zip(
            (logits_finetuned, logits_zeroshot), temperatures, strict=True
        )
    ]
    if space == "logit":
        # 0·(-Inf) would be NaN: a masked class of a model without weight is left out.
        parts = [
            (s * x).masked_fill((s == 0) & (x == -math.inf), 0.0)
            for s, x in zip(share, z, strict=True)
        ]
        return (parts[0] + parts[1]).log_softmax(dim=1)
    return torch.logaddexp(*(x.log_softmax(dim=1) + s.log() for s, x in zip(share, z, strict=True)))
