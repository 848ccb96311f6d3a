"""VRF's premise as a curve: the fine-tuned over the zero-shot accuracy, against d(x).

The paper (arXiv 2411.06966, figure 1b) finds that the ratio falls with the distance to the
zero-shot failures; where it does not, a sample-wise weight has nothing to work with.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from robustft.accuracy import correct
from robustft.ensemble._checks import check_labels, check_logits
from robustft.errors import InputError


def ratio_curve(
    distance: Tensor,
    logits_finetuned: Tensor,
    logits_zeroshot: Tensor,
    labels: Tensor,
    *,
    bins: int = 8,
    edges: Sequence[float] | None = None,
    min_count: int = 10,
) -> list[dict[str, float | int | None]]:
    """Accuracies in bins of the distance.

    Args:
        distance: [N], `VRF.distance`; samples whose distance is not finite are left out.
        logits: [N, C] of both models, -Inf in classes that cannot be predicted; labels: int [N].
        bins: equal-width bins between the 1 % and the 99 % quantile; samples beyond them count
            in the outermost bins.
        edges: increasing bin edges instead; samples outside are left out.
        min_count: bins with fewer samples are left out.

    Returns: one dict a bin, nearest first: "distance" (the bin's mean), "n",
    "accuracy_finetuned", "accuracy_zeroshot", "ratio" (None where zero-shot has no hit).

    Errors: InputError for shapes that do not fit together, or edges that do not increase.
    """
    check_logits("logits_finetuned", logits_finetuned)
    check_logits("logits_zeroshot", logits_zeroshot, *logits_finetuned.shape)
    check_labels("labels", labels, len(logits_finetuned), logits_finetuned.shape[1])
    if distance.shape != labels.shape:
        raise InputError(
            f"distance: got shape {tuple(distance.shape)}, expected {tuple(labels.shape)}"
        )
    d = distance.double().cpu()
    right_ft = correct(logits_finetuned, labels).double().cpu()
    right_zs = correct(logits_zeroshot, labels).double().cpu()
    inside = torch.isfinite(d)
    if not bool(inside.any()):
        return []
    if edges is None:
        if bins < 1:
            raise InputError(f"bins: got {bins}, expected at least 1")
        ordered = d[inside].sort().values
        last = len(ordered) - 1
        low, high = ordered[round(0.01 * last)], ordered[round(0.99 * last)]
        inner = torch.linspace(float(low), float(high), bins + 1, dtype=torch.float64)[1:-1]
        which = torch.bucketize(d, inner, right=True)
        count = bins
    else:
        limits = torch.as_tensor(edges, dtype=torch.float64)
        if len(limits) < 2 or not bool((limits.diff() > 0).all()):
            raise InputError(f"edges: got {list(edges)}, expected at least two increasing numbers")
        inside &= (d >= limits[0]) & (d < limits[-1])
        which = torch.bucketize(d, limits[1:-1].contiguous(), right=True)
        count = len(limits) - 1

    curve: list[dict[str, float | int | None]] = []
    for b in range(count):
        chosen = inside & (which == b)
        n = int(chosen.sum())
        if n < max(min_count, 1):
            continue
        finetuned, zeroshot = float(right_ft[chosen].mean()), float(right_zs[chosen].mean())
        curve.append(
            {
                "distance": float(d[chosen].mean()),
                "n": n,
                "accuracy_finetuned": finetuned,
                "accuracy_zeroshot": zeroshot,
                "ratio": finetuned / zeroshot if zeroshot > 0 else None,
            }
        )
    return curve
