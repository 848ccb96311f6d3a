"""Choosing the ensembles' α on in-distribution validation data, and on nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustft.ensemble._checks import (
    HasSplit,
    check_alpha,
    check_labels,
    check_logits,
    check_selection_split,
)
from robustft.ensemble.calibrate import accuracy
from robustft.ensemble.output import output_ensemble
from robustft.errors import InputError

ALPHAS: tuple[float, ...] = tuple(i / 10 for i in range(11))
"""The papers' grid: 0, 0.1, … 1."""


@dataclass(frozen=True)
class Choice:
    """The α chosen, its validation accuracy, the α tied with it, and the whole curve."""

    alpha: float
    accuracy: float
    tied: tuple[float, ...]
    curve: tuple[tuple[float, float], ...]


def select_alpha(outputs: Mapping[float, HasSplit]) -> Choice:
    """The α with the highest top-1 accuracy on validation outputs.

    Of tied α the smallest is taken, the one nearest to the zero-shot model: a small validation
    set is flat near its top, and at equal accuracy the smaller change keeps more of what the
    pre-trained model knew.

    Args:
        outputs: for each α of the grid, the outputs of the model at that α
            (`robustft.evaluate.Outputs`, all on one validation split).

    Errors: InputError for an empty grid, α outside [0, 1], or outputs of a test split.
    """
    if not outputs:
        raise InputError("outputs: got none, expected at least one alpha")
    curve = []
    for alpha in sorted(outputs):
        one = outputs[alpha]
        check_selection_split(f"the outputs at alpha={alpha}", one)
        check_logits(f"the logits at alpha={alpha}", one.logits)
        check_labels("labels", one.labels, len(one.logits), one.logits.shape[1])
        curve.append((check_alpha(alpha), accuracy(one.logits, one.labels)))
    return _best(curve)


def select_output_alpha(
    finetuned: HasSplit,
    zeroshot: HasSplit,
    *,
    alphas: Sequence[float] = ALPHAS,
    temperature_finetuned: float = 1.0,
    temperature_zeroshot: float = 1.0,
) -> Choice:
    """The α of `output_ensemble` by validation accuracy; ties as in `select_alpha`.

    Errors: InputError for outputs of a test split, of different samples, or an empty grid.
    """
    check_selection_split("finetuned", finetuned)
    check_selection_split("zeroshot", zeroshot)
    check_same_samples(finetuned, zeroshot)
    if not alphas:
        raise InputError("alphas: got none, expected at least one")
    curve: list[tuple[float, float]] = []
    for alpha in sorted(alphas):
        mixed: Tensor = output_ensemble(
            finetuned.logits,
            zeroshot.logits,
            alpha,
            temperature_finetuned=temperature_finetuned,
            temperature_zeroshot=temperature_zeroshot,
            log=True,
        )
        curve.append((float(alpha), accuracy(mixed, finetuned.labels)))
    return _best(curve)


def check_same_samples(finetuned: HasSplit, zeroshot: HasSplit) -> None:
    """The two models' outputs must be of the same samples in the same order."""
    if not torch.equal(finetuned.labels.cpu(), zeroshot.labels.cpu()):
        raise InputError(
            f"the fine-tuned outputs ({len(finetuned.labels)} samples) and the zero-shot outputs "
            f"({len(zeroshot.labels)}) have different labels: expected the same samples in order"
        )


def _best(curve: Sequence[tuple[float, float]]) -> Choice:
    top = max(score for _, score in curve)
    tied = tuple(alpha for alpha, score in curve if score == top)
    return Choice(alpha=min(tied), accuracy=top, tied=tied, curve=tuple(curve))
