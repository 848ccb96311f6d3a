"""What a row of scores predicts, and how sure a share of hits is: the one top-1 of the package."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from robustft.errors import InputError
from robustft.scalars import real

NONE = -1
"""The class of a row that predicts nothing; no label equals it."""


class Predictions(NamedTuple):
    """What a model predicts and how surely: the class of each sample, int64 [N], `NONE` for none,
    and its probability, floating [N], NaN where there is none.

    Where the labels were known also what the model says of them: rank, int64 [N] (`label_rank`);
    log_likelihood, floating [N], the log of the label's probability, in nats; squares, floating
    [N], the sum over the classes of their squared probabilities.
    """

    predicted: Tensor
    confidence: Tensor
    rank: Tensor | None = None
    log_likelihood: Tensor | None = None
    squares: Tensor | None = None

    @staticmethod
    def joined(parts: Sequence[Predictions]) -> Predictions:
        """Those of consecutive samples as one, on the CPU."""
        first, second, *more = zip(*parts, strict=True)
        told = (None if None in column else torch.cat(column).cpu() for column in more)
        return Predictions(torch.cat(first).cpu(), torch.cat(second).cpu(), *told)

    def correct(self, labels: Tensor) -> Tensor:
        """Which samples have their label of [N] predicted: bool [N]."""
        return self.predicted == labels.to(self.predicted.device)


def predict(scores: Tensor) -> Tensor:
    """The class with the highest score of each row of [N, C]: int64 [N].

    -1 where the scores have no finite maximum: a row with NaN or +Inf, or with -Inf alone, comes
    from a model that has diverged and predicts nothing. -Inf masks single classes out.
    """
    highest, index = scores.max(dim=1)  # a NaN is the maximum of its row
    return index.masked_fill(~torch.isfinite(highest), NONE)


def label_rank(scores: Tensor, labels: Tensor) -> Tensor:
    """How many other classes score at least as high as the label's: int64 [N], of scores [N, C] and
    labels int64 [N]. C where nothing is predicted (see `predict`)."""
    own = scores.gather(1, labels.unsqueeze(1))
    # Counted in float: sums of bool are slow, and float32 counts 2^24 classes exactly.
    count = torch.empty_like(scores, dtype=torch.float32)
    rank = torch.ge(scores, own, out=count).sum(dim=1).long() - 1
    return rank.masked_fill(~torch.isfinite(scores.amax(dim=1)), scores.shape[1])


def correct(scores: Tensor, labels: Tensor) -> Tensor:
    """Which rows of scores [N, C] predict their label of [N]: bool [N], on the scores' device."""
    return predict(scores) == labels.to(scores.device)


def wilson_interval(hits: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share of `hits` in `n` trials (JASA 22, 1927).

    Unlike the normal approximation it stays within [0, 1] and has a width at 0 and n hits.

    Errors: InputError for n < 1, hits outside [0, n] or a confidence outside (0, 1).
    """
    if n < 1 or not 0 <= hits <= n:
        raise InputError(f"hits, n: got {hits} of {n}, expected 0 ≤ hits ≤ n and n ≥ 1")
    confidence = real("confidence", confidence)
    if not 0.0 < confidence < 1.0:
        raise InputError(f"confidence: got {confidence}, expected a number between 0 and 1")
    z2 = NormalDist().inv_cdf(0.5 + 0.5 * confidence) ** 2
    share = hits / n
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * share * (1 - share) / n + z2 * z2 / (4 * n * n)) / (1 + z2 / n)
    low = 0.0 if hits == 0 else middle - half
    high = 1.0 if hits == n else middle + half
    return low, high
