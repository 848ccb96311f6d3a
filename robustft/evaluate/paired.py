"""Two models on the same samples: which is right more often, and could it be chance.

What they agree on says nothing about their difference: all here is made of the two counts of
samples on which exactly one of them is right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustft.errors import InputError
from robustft.scalars import real, whole

_FEW = 25  # discordant samples below which the test is exact


@dataclass(frozen=True)
class Paired:
    """n samples, of which the first model alone has `first_only` right, the second alone
    `second_only`; p: of the two-sided test that both are equally often right."""

    n: int
    first_only: int
    second_only: int
    p: float

    @property
    def difference(self) -> float:
        """The first model's accuracy minus the second's."""
        return (self.first_only - self.second_only) / self.n


@dataclass(frozen=True)
class Difference:
    """The first model's accuracy minus the second's, and the ends of its interval."""

    value: float
    low: float
    high: float


Right = Tensor | np.ndarray | Sequence[bool]


def mcnemar(first: Right, second: Right) -> Paired:
    """McNemar's test (Psychometrika 12, 1947) of two models' hits on the same samples.

    With fewer than 25 samples on which exactly one model is right it is the exact binomial test,
    else χ² = (|b − c| − 1)² / (b + c) with one degree of freedom, with Edwards' correction for
    continuity. Without any such sample p is 1.

    Args: first, second: bool [N], which samples the model has right.

    Errors: InputError for other shapes, unequal lengths or none at all, or values that are no bool.
    """
    n, b, c = _counts(first, second)
    if b + c < _FEW:
        tail = sum(math.comb(b + c, k) for k in range(min(b, c) + 1)) / 2 ** (b + c)
        return Paired(n, b, c, min(1.0, 2 * tail))
    statistic = max(abs(b - c) - 1, 0) ** 2 / (b + c)
    return Paired(n, b, c, math.erfc(math.sqrt(statistic / 2)))


def bootstrap_difference(
    first: Right,
    second: Right,
    *,
    draws: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Difference:
    """The paired bootstrap's percentile interval (Efron 1979) of the difference of accuracies.

    A resample's difference depends on how often it drew a sample that only the first, or only the
    second, model has right. These counts are multinomial and are drawn as such: the distribution
    of resampling the samples themselves, in memory of `draws` numbers whatever N is.

    Errors: as for `mcnemar`; InputError for draws below 1 or a confidence outside (0, 1).
    """
    n, b, c = _counts(first, second)
    if whole("draws", draws) < 1:
        raise InputError(f"draws: got {draws}, expected at least 1")
    confidence = real("confidence", confidence)
    if not 0.0 < confidence < 1.0:
        raise InputError(f"confidence: got {confidence}, expected a number between 0 and 1")
    generator = np.random.default_rng(whole("seed", seed))
    drawn = generator.multinomial(n, [b / n, c / n, (n - b - c) / n], size=draws)
    differences = (drawn[:, 0] - drawn[:, 1]) / n
    low, high = np.quantile(differences, [0.5 - 0.5 * confidence, 0.5 + 0.5 * confidence])
    return Difference((b - c) / n, float(low), float(high))


def _counts(first: Right, second: Right) -> tuple[int, int, int]:
    """N, and how many samples only the first and only the second model has right."""
    one, other = _right("first", first), _right("second", second)
    if one.shape != other.shape:
        raise InputError(f"second: got {len(other)} samples, expected {len(one)} as in first")
    return len(one), int((one & ~other).sum()), int((other & ~one).sum())


def _right(name: str, value: Any) -> Tensor:
    right = torch.as_tensor(value, device="cpu")
    if right.dtype != torch.bool or right.ndim != 1 or len(right) == 0:
        raise InputError(
            f"{name}: got {right.dtype} of shape {tuple(right.shape)}, expected bool [N], N ≥ 1"
        )
    return right
