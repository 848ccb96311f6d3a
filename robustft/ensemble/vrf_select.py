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
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustft.accuracy import correct
from robustft.ensemble._checks import finite
from robustft.errors import InputError
from robustft.scalars import whole

QUANTILES: tuple[float, ...] = (0.5, 0.75, 0.9, 0.95, 0.99)
SPREADS: tuple[float, ...] = (2.0, 4.0, 1.0, 0.5)
"""Multiples of the spread, the preferred first."""

OMEGAS: tuple[str, ...] = ("sigmoid", "linear", "binary")
"""The forms of the weight."""

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
    distance: Tensor, finetuned: Tensor, zeroshot: Tensor, labels: Tensor, omega: str = "sigmoid"
) -> Modulation:
    """a and b by the rule above.

    Args: validation distances [N]; what is mixed, [N, C] of both models (calibrated probabilities,
    or logits over their temperatures); labels [N]; the form of the weight.

    The grid is the sigmoid's: the other forms have the weight ½ at the same quantile, and the
    linear one the same slope there, -1/(4b), so that its own a lies 2b higher. The binary one has
    no slope: its grid is of quantiles alone.
    """
    d = distance.double().cpu().numpy()
    spread = _spread(d)
    widths = SPREADS if omega != "binary" else SPREADS[:1]
    grid = []  # in the order of preference
    for m in widths:
        for q in QUANTILES:
            a, b = float(np.quantile(d, q)), m * spread
            grid.append((m, q, a + 2 * b, 1 / (4 * b)) if omega == "linear" else (m, q, a, b))
    hits = np.zeros(len(grid), dtype=np.int64)
    for start in range(0, len(d), _CHUNK):
        rows = slice(start, start + _CHUNK)
        for i, (_, _, a, b) in enumerate(grid):
            weight = sample_weight(distance[rows], a, b, omega).unsqueeze(1)
            mixed = weight * finetuned[rows] + (1 - weight) * zeroshot[rows]
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


def sample_weight(distance: Tensor, a: float, b: float, omega: str = "sigmoid") -> Tensor:
    """ω of distances [N], in [0, 1], not increasing; NaN for NaN.

    "sigmoid": σ(-(d-a)/b), ½ at d = a; "linear": clamp(b·(a-d), 0, 1), 0 from d = a on;
    "binary": 1 for d < a, else 0.
    """
    if omega == "linear":
        return (b * (a - distance)).clamp(0.0, 1.0)
    if omega == "binary":
        return torch.where(distance.isnan(), distance, (distance < a).to(distance.dtype))
    return torch.sigmoid((a - distance) / b)


def share_of(p: float, count: int) -> int:
    """⌊p·count⌋, where a product that is whole but for rounding counts as whole.

    0.29 · 100 is 28.999… in binary; p and the product are each off by half a unit in the last
    place at most.
    """
    product = p * count
    nearest = round(product)
    if abs(product - nearest) <= 4 * math.ulp(product):
        return nearest
    return math.floor(product)


def modulation_of(fields: Any) -> Modulation:
    """A `Modulation` from its fields as JSON gives them; InputError for anything else."""
    names = list(Modulation.__dataclass_fields__)
    if not isinstance(fields, dict) or sorted(fields) != sorted(names):
        raise InputError(f"selection_: got {fields!r}, expected {', '.join(names)} or null")
    return Modulation(
        tied=whole("selection_.tied", fields["tied"]),
        **{n: finite(f"selection_.{n}", fields[n]) for n in names if n != "tied"},
    )


def _spread(d: np.ndarray) -> float:
    """The standard deviation; with equal distances any positive scale gives the same weights."""
    deviation = float(d.std())
    largest = float(np.abs(d).max())
    # Rounding noise of equal distances is no spread.
    if deviation > 1e-6 * largest:
        return deviation
    return largest if largest > 0 and math.isfinite(largest) else 1.0
