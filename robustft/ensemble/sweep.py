"""Output ensembling at many weights in one pass over the logits.

For every α of a curve the mixture is needed only for what it predicts and how surely. So rows are
taken a batch at a time: two softmaxes for all α together, and for each α one pass over the batch
while it lies in the cache; where labels are known, a second one counts what comes before them.
Memory is a few batches, whatever N, C and the number of α.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from robustft.accuracy import NONE, Predictions, label_rank
from robustft.ensemble._checks import (
    check_alpha,
    check_choice,
    check_logits,
    check_positive,
    label_columns,
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
    labels: Tensor | None = None,
    temperature_finetuned: float = 1.0,
    temperature_zeroshot: float = 1.0,
    space: Literal["probability", "logit"] = "probability",
    class_subset: Tensor | Sequence[int] | None = None,
) -> list[Predictions]:
    """What `output_ensemble` predicts at every α, and with which probability.

    Args: as for `output_ensemble`: logits [N, C] of both models; alphas in [0, 1]; labels: int
    [N], for predictions that tell of them too.

    Returns: for each α, `Predictions` of N samples, on the CPU.

    Errors: InputError for shapes, an α outside [0, 1], none at all, labels that are no class of
    the subset, or temperatures that are not positive.
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
    if labels is not None:
        labels = label_columns(labels, rows, classes, index)
    dtype = torch.promote_types(
        torch.promote_types(logits_finetuned.dtype, logits_zeroshot.dtype), torch.float32
    )
    step = max(1, _NUMBERS // classes)
    found: list[list[Predictions]] = [[] for _ in weights]
    room = torch.empty(0, dtype=dtype, device=logits_finetuned.device)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        both = [z[part] for z in (logits_finetuned, logits_zeroshot)]
        if index is not None:
            both = [z[:, index.to(z.device)] for z in both]
        own = None if labels is None else labels[part].to(both[0].device)
        if space == "probability":
            scaled = [z.to(dtype) / t for z, t in zip(both, temperatures, strict=True)]
            ends = [z.softmax(dim=1) for z in scaled]
            if own is not None:
                told = _Told.of(scaled, ends, own)
        for alpha, parts in zip(weights, found, strict=True):
            if space == "logit":
                logs = _logits_mixed(both, alpha, temperatures)
                mixed = logs.exp()
            elif alpha in (0.0, 1.0):  # the other model is not looked at, NaN or not
                mixed = ends[0 if alpha == 1.0 else 1]
            else:
                room.resize_(ends[0].shape)
                mixed = torch.lerp(ends[1], ends[0], alpha, out=room)
            surest, label = mixed.max(dim=1)  # a NaN is the maximum of its row
            label = label.masked_fill(~torch.isfinite(surest), NONE)
            if index is not None:
                named = index.to(label.device)
                label = torch.where(label == NONE, label, named[label])
            if own is None:
                parts.append(Predictions(label, surest))
                continue
            rank = label_rank(mixed, own)
            if space == "logit":
                log_p, squares = logs.gather(1, own.unsqueeze(1)).squeeze(1), mixed.square().sum(1)
            else:
                log_p, squares = told.at(alpha)
            parts.append(Predictions(label, surest, rank, log_p, squares))
    return [Predictions.joined(parts) for parts in found]


class _Told(NamedTuple):
    """What a batch's mixtures say of its labels, from what the two models do. [B] each: the log of
    the label's probability, by the fine-tuned and by the zero-shot model; Σ_c of p_ft², p_ft·p_zs
    and p_zs²."""

    logs: tuple[Tensor, Tensor]
    squares: tuple[Tensor, Tensor, Tensor]

    @classmethod
    def of(cls, logits: Sequence[Tensor], probabilities: Sequence[Tensor], labels: Tensor) -> _Told:
        tuned, plain = probabilities
        place = labels.unsqueeze(1)
        # Not the log of a probability, which may have come to 0.
        logs = [z.gather(1, place).squeeze(1) - z.logsumexp(dim=1) for z in logits]
        squares = [(p * q).sum(dim=1) for p, q in ((tuned, tuned), (tuned, plain), (plain, plain))]
        return cls((logs[0], logs[1]), (squares[0], squares[1], squares[2]))

    def at(self, alpha: float) -> tuple[Tensor, Tensor]:
        """log p of the label and Σp² of α·p_ft + (1 − α)·p_zs."""
        if alpha in (0.0, 1.0):
            return self.logs[0 if alpha == 1.0 else 1], self.squares[0 if alpha == 1.0 else 2]
        tuned, plain = self.logs
        log_p = torch.logaddexp(tuned + math.log(alpha), plain + math.log(1 - alpha))
        own, shared, other = self.squares
        return log_p, alpha**2 * own + 2 * alpha * (1 - alpha) * shared + (1 - alpha) ** 2 * other


def _logits_mixed(both: list[Tensor], alpha: float, temperatures: tuple[float, float]) -> Tensor:
    """log P of the mixture."""
    if alpha in (0.0, 1.0):
        end = 0 if alpha == 1.0 else 1
        both, temperatures = [both[end]] * 2, (temperatures[end],) * 2
    weight = torch.full((len(both[0]),), alpha, dtype=torch.float64)
    return mix(both[0], both[1], weight, temperatures=temperatures, space="logit")
