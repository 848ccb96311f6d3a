"""What a row of scores predicts, and how sure a share of hits is: the one top-1 of the package."""

from __future__ import annotations

import math
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
    and its probability, floating [N], NaN where there is none."""

    predicted: Tensor
    confidence: Tensor

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
