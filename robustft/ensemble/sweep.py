"""Output ensembling at many weights in one pass over the logits.

For every α of a curve the mixture is needed only for what it predicts and how surely. So rows are
taken a batch at a time: two softmaxes for all α together, and for each α one pass over the batch
while it lies in the cache. Memory is a few batches, whatever N, C and the number of α.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from robustft.accuracy import NONE, Predictions
from robustft.ensemble._checks import (
    check_alpha,
    check_choice,
    check_logits,
    check_positive,
    subset_index,
)
from robustft.ensemble.output import mix
from robustft.errors import InputError

# Numbers in a batch: its two softmaxes and the mixture are 3 MB of float32.
_NUMBERS = 2**18


@torch.no_grad()
def sweep_outputs(
    logits_finetuned: Tensor,
    logits_zeroshot: Tensor,
    alphas: Sequence[float],
    *,
    temperature_finetuned: float = 1.0,
    temperature_zeroshot: float = 1.0,
    space: Literal["probability", "logit"] = "probability",
    class_subset: Tensor | Sequence[int] | None = None,
) -> list[Predictions]:
    """What `output_ensemble` predicts at every α, and with which probability.

    Args: as for `output_ensemble`: logits [N, C] of both models; alphas in [0, 1].

    Returns: for each α, `Predictions` of N samples, on the CPU.

    Errors: InputError for shapes, an α outside [0, 1], none at all, or temperatures that are not
    positive.
    """
    check_logits("logits_finetuned", logits_finetuned)
    check_logits("logits_zeroshot", logits_zeroshot, *logits_finetuned.shape)
    check_choice("space", space, ("probability", "logit"))
    temperatures = (
        check_positive("temperature_finetuned", temperature_finetuned),
        check_positive("temperature_zeroshot", temperature_zeroshot),
    )
    weights = [check_alpha(alpha) for alpha in alphas]
    if not weights:
        raise InputError("alphas: got none, expected at least one")
    rows, classes = logits_finetuned.shape
    index = subset_index(class_subset, classes)
    if index is not None:
        index = index.sort().values  # of equals the first class counts, as without a subset
    dtype = torch.promote_types(
        torch.promote_types(logits_finetuned.dtype, logits_zeroshot.dtype), torch.float32
    )
    step = max(1, _NUMBERS // classes)
    found = [
        Predictions(torch.empty(rows, dtype=torch.int64), torch.empty(rows, dtype=dtype))
        for _ in weights
    ]
    room = torch.empty(0, dtype=dtype, device=logits_finetuned.device)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        both = [z[part] for z in (logits_finetuned, logits_zeroshot)]
        if index is not None:
            both = [z[:, index.to(z.device)] for z in both]
        if space == "probability":
            ends = [
                (z.to(dtype) / temperature).softmax(dim=1)
                for z, temperature in zip(both, temperatures, strict=True)
            ]
        for alpha, one in zip(weights, found, strict=True):
            if space == "logit":
                mixed = _logits_mixed(both, alpha, temperatures)
            elif alpha in (0.0, 1.0):  # the other model is not looked at, NaN or not
                mixed = ends[0 if alpha == 1.0 else 1]
            else:
                room.resize_(ends[0].shape)
                mixed = torch.lerp(ends[1], ends[0], alpha, out=room)
            surest, label = mixed.max(dim=1)  # a NaN is the maximum of its row
            label = label.masked_fill(~torch.isfinite(surest), NONE)
            if index is not None:
                own = index.to(label.device)
                label = torch.where(label == NONE, label, own[label])
            one.predicted[part], one.confidence[part] = label, surest
    return found


def _logits_mixed(both: list[Tensor], alpha: float, temperatures: tuple[float, float]) -> Tensor:
    if alpha in (0.0, 1.0):
        end = 0 if alpha == 1.0 else 1
        both, temperatures = [both[end]] * 2, (temperatures[end],) * 2
    weight = torch.full((len(both[0]),), alpha, dtype=torch.float64)
    return mix(both[0], both[1], weight, temperatures=temperatures, space="logit").exp()
