"""Choosing the ensembles' α on in-distribution validation data, and on nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from robustft.accuracy import NONE, predict, wilson_interval
from robustft.choices import ALPHAS
from robustft.ensemble._checks import (
    HasSplit,
    check_alpha,
    check_labels,
    check_logits,
    check_selection_split,
)
from robustft.ensemble.sweep import sweep_outputs
from robustft.errors import InputError


@dataclass(frozen=True)
class Choice:
    """The α chosen, its validation accuracy, the α tied with it, and the whole curve.

    n: the validation samples. `interval` is Wilson's 95 % interval of the accuracy, `within` the
    α whose accuracy lies in it: on a small validation set the choice among them is a draw.
    """

    alpha: float
    accuracy: float
    tied: tuple[float, ...]
    curve: tuple[tuple[float, float], ...]
    n: int
    interval: tuple[float, float] = field(init=False)

    def __post_init__(self) -> None:
        hits = round(self.accuracy * self.n)
        object.__setattr__(self, "interval", wilson_interval(hits, self.n))

    @property
    def within(self) -> tuple[float, ...]:
        """The α of the curve whose accuracy is not below the interval."""
        return tuple(alpha for alpha, score in self.curve if score >= self.interval[0])

    def __str__(self) -> str:
        """The choice in one line, with what it rests on."""
        low, high = (100 * end for end in self.interval)
        text = (
            f"α={self.alpha:g}: {100 * self.accuracy:.1f} % of {self.n} validation samples "
            f"(95 % interval {low:.1f} to {high:.1f})"
        )
        others = [f"{alpha:g}" for alpha in self.tied if alpha != self.alpha]
        if others:
            text += f", tied with {', '.join(others)}: the one nearest to the fine-tuned model"
        elif len(self.within) > 1:
            text += f"; {len(self.within)} of {len(self.curve)} values lie within it"
        return text


def select_alpha(outputs: Mapping[float, HasSplit]) -> Choice:
    """The α with the highest top-1 accuracy on validation outputs.

    Of tied α the largest is taken, the one nearest to the fine-tuned model: a small validation
    set is flat near its top, and in-distribution accuracy, what the choice is made for, falls
    towards the zero-shot model. An α at which not one sample has a prediction (its model has
    diverged to NaN) is never taken.

    Args:
        outputs: for each α of the grid, the outputs of the model at that α
            (`robustft.evaluate.Outputs`, all on one validation split).

    Errors: InputError for an empty grid, α outside [0, 1], outputs of a test split or of other
    samples at another α, or where no α has a prediction.
    """
    if not outputs:
        raise InputError("outputs: got none, expected at least one alpha")
    first = next(iter(outputs.values()))
    for alpha, one in outputs.items():
        check_alpha(alpha)
        check_selection_split(f"the outputs at alpha={alpha}", one)
        check_logits(f"the logits at alpha={alpha}", one.logits)
        check_labels("labels", one.labels, len(one.logits), one.logits.shape[1])
        check_same_samples(one, first, f"the outputs at alpha={alpha}", "those at the first")
    return _choose(
        (float(alpha), predict(one.logits), one.labels.to(one.logits.device))
        for alpha, one in outputs.items()
    )


def select_output_alpha(
    finetuned: HasSplit,
    zeroshot: HasSplit,
    *,
    alphas: Sequence[float] = ALPHAS,
    temperature_finetuned: float = 1.0,
    temperature_zeroshot: float = 1.0,
    space: Literal["probability", "logit"] = "probability",
) -> Choice:
    """The α of `output_ensemble` by validation accuracy; ties as in `select_alpha`.

    Errors: InputError for outputs of a test split, of different samples, an empty grid, or where
    no α has a prediction.
    """
    check_selection_split("finetuned", finetuned)
    check_selection_split("zeroshot", zeroshot)
    check_same_samples(finetuned, zeroshot)
    found = sweep_outputs(
        finetuned.logits,
        zeroshot.logits,
        alphas,
        temperature_finetuned=temperature_finetuned,
        temperature_zeroshot=temperature_zeroshot,
        space=space,
    )
    labels = finetuned.labels.cpu()
    return _choose(
        (float(alpha), one.predicted, labels) for alpha, one in zip(alphas, found, strict=True)
    )


def check_same_samples(
    one: HasSplit,
    other: HasSplit,
    name: str = "the fine-tuned outputs",
    other_name: str = "the zero-shot outputs",
) -> None:
    """Two models' outputs must be of the same samples in the same order."""
    if not torch.equal(one.labels.cpu(), other.labels.cpu()):
        raise InputError(
            f"{name} ({len(one.labels)} samples) and {other_name} ({len(other.labels)}) have "
            "different labels: expected the same samples in order"
        )


def _choose(scored: Iterable[tuple[float, Tensor, Tensor]]) -> Choice:
    """The choice among (α, predicted classes [N], labels [N]), taken one at a time."""
    hits: dict[float, int] = {}
    diverged = set()
    n = 0
    for alpha, predicted, labels in scored:
        n = len(labels)
        hits[alpha] = int((predicted == labels).sum())
        if bool((predicted == NONE).all()):
            diverged.add(alpha)
    curve = tuple((alpha, hits[alpha] / n) for alpha in sorted(hits))
    sound = [(alpha, score) for alpha, score in curve if alpha not in diverged]
    if not sound:
        raise InputError("outputs: got NaN for every sample at every alpha, expected predictions")
    top = max(score for _, score in sound)
    tied = tuple(alpha for alpha, score in sound if score == top)
    return Choice(alpha=max(tied), accuracy=top, tied=tied, curve=curve, n=n)
