"""Choosing VRF's a and b on in-distribution validation data.

The weight is ω = σ(-(d-a)/b). Distances have no fixed scale (squared or not, unit rows or raw
features), so the grid is laid in the units of the validation distances themselves: a at their
quantiles, b in multiples of their standard deviation. Scaling every distance scales a and b and
leaves ω as it was.

The rule, in this order:

1. the highest validation accuracy (the criterion of the paper, arXiv 2411.06966);
2. of those, the b nearest to two spreads: a gentle modulation;
3. of those, the smallest a: most weight on the zero-shot model.

Validation sets are small and accurate, so most of the grid ties in step 1 and the tie-break
decides. The mixture's log-likelihood is no good for it: a mixture of two calibrated models is
under-confident wherever both are right, which is nearly everywhere in distribution, so the
likelihood pays for confidence and drives ω to 1, the fine-tuned model alone, however little that
changes a prediction. The steep end of the grid is no better: validation says nothing about the
distances beyond it, where a steep ω is a hard switch, and the paper's ablation finds the hard
switch worst on either side. Hence steps 2 and 3, which cost no validation accuracy. a starts at the
median: a fine-tuned model deserves at least half the weight on most of its own distribution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from robustft.accuracy import correct

QUANTILES: tuple[float, ...] = (0.5, 0.75, 0.9, 0.95, 0.99)
SPREADS: tuple[float, ...] = (2.0, 4.0, 1.0, 0.5)
"""Multiples of the spread, the preferred first."""

_CHUNK = 4096


@dataclass(frozen=True)
class Modulation:
    """a and b, and where in the grid they lie; `tied` counts the grid points of equal accuracy."""

    a: float
    b: float
    quantile: float
    spreads: float
    accuracy: float
    tied: int


def choose_modulation(
    distance: Tensor, proba_finetuned: Tensor, proba_zeroshot: Tensor, labels: Tensor
) -> Modulation:
    """a and b by the rule above.

    Args: validation distances [N]; the calibrated probabilities [N, C] of both models; labels [N].
    """
    d = distance.double().cpu().numpy()
    spread = _spread(d)
    grid = [
        (m, q, float(np.quantile(d, q)), m * spread) for m in SPREADS for q in QUANTILES
    ]  # in the order of preference
    hits = np.zeros(len(grid), dtype=np.int64)
    for start in range(0, len(d), _CHUNK):
        rows = slice(start, start + _CHUNK)
        for i, (_, _, a, b) in enumerate(grid):
            weight = sample_weight(distance[rows], a, b).unsqueeze(1)
            mixed = weight * proba_finetuned[rows] + (1 - weight) * proba_zeroshot[rows]
            hits[i] += int(correct(mixed, labels[rows]).sum())
    best = int(hits.argmax())  # the first of equals
    m, q, a, b = grid[best]
    return Modulation(
        a=a,
        b=b,
        quantile=q,
        spreads=m,
        accuracy=float(hits[best]) / len(d),
        tied=int((hits == hits[best]).sum()),
    )


def sample_weight(distance: Tensor, a: float, b: float) -> Tensor:
    """ω = σ(-(d-a)/b) of distances [N]: decreasing, ½ at d = a."""
    return torch.sigmoid((a - distance) / b)


def _spread(d: np.ndarray) -> float:
    """The standard deviation; with equal distances any positive scale gives the same weights."""
    deviation = float(d.std())
    largest = float(np.abs(d).max())
    # Rounding noise of equal distances is no spread.
    if deviation > 1e-6 * largest:
        return deviation
    return largest if largest > 0 and math.isfinite(largest) else 1.0
