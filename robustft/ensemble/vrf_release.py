"""VRF as its authors' code (github.com/BeierZhu/VRF) computes it, where it is not the paper's.

k is round(1000·|V|/N), N the training samples, instead of ⌊0.1 % · |V|⌋. The temperatures solve the
same equation as `matching_temperature`, to 1e-3 only, by a false-position search on [0.1, 10] that
widens an end where the root lies beyond it; the release solves it on the split that it reports.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustft.accuracy import correct
from robustft.errors import InputError

A, B = 1.5, 0.6
_TOLERANCE, _LOW, _HIGH, _WIDER, _TURNS = 1e-3, 0.1, 10.0, 1.1, 10_000
_CHUNK = 8192


def released_k(failures: int, samples: int) -> int:
    """round(1000·|V|/N), at least 1 and at most |V|."""
    return max(1, min(round(1000 * failures / samples), failures))


@torch.no_grad()
def released_temperature(logits: Tensor, labels: Tensor) -> float:
    """T of logits [N, C] and labels int [N].

    Errors: InputError where the search does not end: an accuracy that no T in its reach has.
    """
    accuracy = float(correct(logits, labels).double().mean())

    def confidence(temperature: float) -> float:
        parts = ((rows / temperature).softmax(dim=1).amax(dim=1) for rows in logits.split(_CHUNK))
        return float(sum(part.double().sum() for part in parts)) / len(logits)

    low, high = _LOW, _HIGH
    for _ in range(_TURNS):
        at_low, at_high = confidence(low), confidence(high)
        below, above = abs(at_low - accuracy), abs(at_high - accuracy)
        share = below / (below + above) if below + above else 0.5
        middle = low * (1 - share) + high * share
        off = abs(confidence(middle) - accuracy)
        if off <= _TOLERANCE:
            return middle
        if at_high > accuracy:
            high *= _WIDER
        elif at_low < accuracy:
            low /= _WIDER
        elif below < above:
            high = middle
        else:
            low = middle
        if not 1e-30 < low < high < 1e30:
            break
    raise InputError(
        f"as_released: the release's search finds no temperature whose confidence is the accuracy "
        f"{accuracy:.4f}; expected calibrate=False, or as_released=False"
    )
