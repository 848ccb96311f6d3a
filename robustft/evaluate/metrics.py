"""Accuracy and calibration of a matrix of logits or log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from robustft.accuracy import Predictions, predict, wilson_interval
from robustft.ensemble._checks import check_labels, check_logits, check_positive, subset_index
from robustft.ensemble.calibrate import matching_temperature as fit_temperature
from robustft.errors import InputError

__all__ = [
    "binned_error",
    "calibration_error",
    "ece",
    "fit_temperature",
    "least_group",
    "macro_f1",
    "mean_f1",
    "nll",
    "predictions",
    "top1",
    "wilson_interval",
    "worst_group",
]


def top1(
    logits: Tensor, labels: Tensor, class_subset: Tensor | Sequence[int] | None = None
) -> float:
    """The share of samples whose highest logit is their label's, in [0, 1].

    Args:
        logits: [N, C] logits or probabilities; labels: int [N], indices into the C classes.
        class_subset: the classes that the data set has; the others cannot be predicted.

    A row without a finite maximum (NaN, +Inf, -Inf alone) predicts nothing and counts as wrong.

    Errors: InputError for shapes, or labels outside the classes or the subset.
    """
    _check(logits, labels, class_subset)
    right = predict(_masked(logits, class_subset)) == labels.to(logits.device)
    return float(right.double().mean())


def nll(logits: Tensor, labels: Tensor, *, temperature: float = 1.0) -> float:
    """Mean negative log-likelihood, in nats, of softmax(logits / temperature).

    Log-probabilities are logits too: their softmax is the distribution itself.
    """
    check_logits("logits", logits)
    check_labels("labels", labels, len(logits), logits.shape[1])
    log_p = (logits.double() / check_positive("temperature", temperature)).log_softmax(dim=1)
    return float(-log_p.gather(1, labels.to(logits.device).long().unsqueeze(1)).mean())


def ece(probabilities: Tensor, labels: Tensor, *, bins: int = 15) -> float:
    """Expected calibration error: Σ_b n_b/N·|accuracy_b - confidence_b| over equal-width bins.

    Args: probabilities [N, C] whose rows sum to 1; labels int [N].
    Errors: InputError for other shapes, rows that do not sum to 1, or bins below 1.
    """
    check_logits("probabilities", probabilities)
    check_labels("labels", labels, len(probabilities), probabilities.shape[1])
    if bins < 1:
        raise InputError(f"bins: got {bins}, expected at least 1")
    total = probabilities.double().sum(dim=1)
    if not bool(((total - 1).abs() < 1e-2).all()):
        raise InputError("probabilities: got rows that do not sum to 1 (are they logits?)")
    confidence, predicted = probabilities.double().max(dim=1)
    return binned_error(confidence, predicted == labels.to(predicted.device), bins=bins)


def binned_error(confidence: Tensor, right: Tensor, *, bins: int = 15) -> float:
    """`ece` of what is predicted: its probability, floating [N], and whether it is right, bool [N].

    NaN where a confidence is: a model that has diverged. Errors: none.
    """
    confidence, right = confidence.double(), right.to(confidence.device).double()
    if bool(confidence.isnan().any()):
        return math.nan
    # Bin b holds confidences in (b/bins, (b+1)/bins].
    which = ((confidence * bins).ceil().long() - 1).clamp(0, bins - 1)
    gap = torch.zeros(bins, dtype=torch.float64, device=confidence.device)
    gap.index_add_(0, which, right - confidence)
    return float(gap.abs().sum() / len(right))


def predictions(
    logits: Tensor, labels: Tensor, class_subset: Tensor | Sequence[int] | None = None
) -> Predictions:
    """What logits [N, C] predict within the classes of the subset, and with which softmax.

    Errors: as for `top1`.
    """
    _check(logits, labels, class_subset)
    logits = _masked(logits, class_subset)
    surest = logits.double().softmax(dim=1).amax(dim=1)
    return Predictions(predict(logits).cpu(), surest.cpu())


def macro_f1(
    logits: Tensor, labels: Tensor, class_subset: Tensor | Sequence[int] | None = None
) -> float:
    """The mean over the classes that occur in `labels` of F1 = 2·TP / (2·TP + FP + FN), in [0, 1]:
    the measure of iWildCam (WILDS, arXiv 2012.07421). Arguments and errors as for `top1`."""
    check_logits("logits", logits)
    check_labels("labels", labels, len(logits), logits.shape[1])
    return mean_f1(predict(_masked(logits, class_subset)), labels)


def mean_f1(predicted: Tensor, labels: Tensor) -> float:
    """`macro_f1` of predicted classes, int64 [N], -1 for none; labels int [N]. Errors: none."""
    predicted, labels = predicted.cpu(), labels.long().cpu()
    present, true = labels.unique(return_counts=True)
    hits = torch.stack([(predicted[labels == c] == c).sum() for c in present])
    said = torch.stack([(predicted == c).sum() for c in present])
    # TP + FP is how often a class was said, TP + FN how often it is true.
    return float((2 * hits.double() / (said + true)).mean())


def worst_group(
    logits: Tensor,
    labels: Tensor,
    groups: Tensor,
    class_subset: Tensor | Sequence[int] | None = None,
) -> tuple[float, int]:
    """The least top-1 of any group that has images, in [0, 1], and that group: FMoW's worst region.

    Args: as for `top1`; groups: int [N], -1 for images that belong to none.

    Errors: as for `top1`; InputError if no image belongs to a group.
    """
    if groups.shape != labels.shape:
        raise InputError(f"groups: got {list(groups.shape)}, expected {list(labels.shape)}")
    _check(logits, labels, class_subset)
    right = predict(_masked(logits, class_subset)) == labels.to(logits.device)
    return least_group(right, groups)


def least_group(right: Tensor, groups: Tensor) -> tuple[float, int]:
    """`worst_group` of which samples are right, bool [N]; groups int [N].

    Errors: InputError if no sample belongs to a group.
    """
    accuracy = group_accuracies(right, groups)
    if not accuracy:
        raise InputError("groups: got no image in any group, expected at least one")
    worst = min(accuracy, key=lambda group: accuracy[group])
    return accuracy[worst], worst


def group_accuracies(right: Tensor, groups: Tensor) -> dict[int, float]:
    """Top-1 in [0, 1] of every group that has images, ascending; right: which samples are right,
    bool [N]; groups: int [N], -1 for none. Errors: none."""
    right = right.to(groups.device)
    found = [int(group) for group in groups.unique() if group >= 0]
    return {group: float(right[groups == group].double().mean()) for group in found}


def _check(logits: Tensor, labels: Tensor, class_subset: Tensor | Sequence[int] | None) -> None:
    check_logits("logits", logits)
    check_labels("labels", labels, len(logits), logits.shape[1])
    index = subset_index(class_subset, logits.shape[1])
    if index is not None:
        strangers = labels[~torch.isin(labels, index.to(labels.device))]
        if len(strangers):
            raise InputError(
                f"labels: got class {int(strangers[0])}, expected only classes of class_subset"
            )


def _masked(logits: Tensor, class_subset: Tensor | Sequence[int] | None) -> Tensor:
    """Logits with -Inf outside the classes of the subset."""
    index = subset_index(class_subset, logits.shape[1])
    if index is None:
        return logits
    outside = torch.ones(logits.shape[1], dtype=torch.bool)
    outside[index] = False
    return logits.masked_fill(outside.to(logits.device), -torch.inf)


def calibration_error(
    logits: Tensor, labels: Tensor, class_subset: Tensor | Sequence[int] | None = None
) -> float:
    """`ece` of softmax(logits), over the classes of `class_subset`; log-probabilities are logits.

    NaN where a row has no softmax: a model that has diverged.
    """
    probabilities = _masked(logits, class_subset).double().softmax(dim=1)
    return math.nan if bool(probabilities.isnan().any()) else ece(probabilities, labels)
