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
    check_logits,
    check_positive,
    spread_columns,
    subset_index,
)
from robustft.errors import InputError


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
    dtype = torch.promote_types(
        torch.promote_types(logits_finetuned.dtype, logits_zeroshot.dtype), torch.float32
    )
    classes = logits_finetuned.shape[1]
    index = subset_index(class_subset, classes)
    z_ft = logits_finetuned.to(dtype) / check_positive(
        "temperature_finetuned", temperature_finetuned
    )
    z_zs = logits_zeroshot.to(dtype) / check_positive("temperature_zeroshot", temperature_zeroshot)
    if index is not None:
        z_ft, z_zs = z_ft[:, index.to(z_ft.device)], z_zs[:, index.to(z_zs.device)]

    if space not in ("probability", "logit"):
        raise InputError(f"space: got {space!r}, expected 'probability' or 'logit'")
    if alpha in (0.0, 1.0):  # the other model is not looked at, NaN or not
        log_p = (z_ft if alpha == 1.0 else z_zs).log_softmax(dim=1)
    elif space == "logit":
        log_p = (alpha * z_ft + (1.0 - alpha) * z_zs).log_softmax(dim=1)
    else:
        log_p = torch.logaddexp(
            z_ft.log_softmax(dim=1) + math.log(alpha),
            z_zs.log_softmax(dim=1) + math.log(1.0 - alpha),
        )
    if log:
        return spread_columns(log_p, index, classes, -math.inf)
    return spread_columns(log_p.exp(), index, classes, 0.0)
