"""One temperature per model, so that its confidence equals its accuracy on held-out data."""

from __future__ import annotations

import math

from torch import Tensor

from robustft.accuracy import correct
from robustft.ensemble._checks import check_finite, check_labels, check_logits, check_positive
from robustft.errors import warn

# VRF's release starts from 0.1 … 10 and widens; heads without the folded logit scale need far less.
_LOWEST, _HIGHEST = 1e-4, 1e4
_CHUNK = 8192


def matching_temperature(logits: Tensor, labels: Tensor, *, tolerance: float = 1e-7) -> float:
    """The T for which the mean of max softmax(logits / T) equals the top-1 accuracy.

    This is the calibration of VRF's release (arXiv 2411.06966), which solves it on the split that
    is reported; give held-out in-distribution data here.

    Args:
        logits: [N, C], any floating dtype; computed in float64.
        labels: int [N].
        tolerance: relative width of the interval at which the bisection in log T stops.

    A model without an error (or without a hit) has no finite solution: its accuracy is taken half
    an observation away from 1 (or, at or below chance, T stops at 1e4 with a warning).

    Errors: InputError for shapes, labels out of range or non-finite logits.
    """
    check_logits("logits", logits)
    check_labels("labels", labels, len(logits), logits.shape[1])
    check_finite("logits", logits)
    count = len(logits)
    tolerance = check_positive("tolerance", tolerance)
    hits = int(correct(logits, labels).sum())
    target = min(hits, count - 0.5) / count

    # max softmax(z/T) = 1 / Σ exp((z - max z)/T): falls from 1 (T→0) towards 1/C.
    def confidence(temperature: float) -> float:
        total = 0.0
        for rows in logits.split(_CHUNK):
            z = rows.double()
            z = (z - z.amax(dim=1, keepdim=True)) / temperature
            total += float((1.0 / z.exp().sum(dim=1)).sum())
        return total / count

    low, high = math.log(0.1), math.log(10.0)
    while confidence(math.exp(low)) < target and low > math.log(_LOWEST):
        low -= math.log(2.0)
    while confidence(math.exp(high)) > target and high < math.log(_HIGHEST):
        high += math.log(2.0)
    if confidence(math.exp(high)) > target or confidence(math.exp(low)) < target:
        end = _HIGHEST if confidence(math.exp(high)) > target else _LOWEST
        warn(
            f"no temperature makes the mean confidence equal the accuracy {target:.4f}; "
            f"using {end:g}"
        )
        return end
    while high - low > tolerance:
        middle = 0.5 * (low + high)
        if confidence(math.exp(middle)) > target:
            low = middle
        else:
            high = middle
    return math.exp(0.5 * (low + high))
