"""Accuracy of a matrix of logits or log-probabilities, and all measures of what is predicted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from robustft.accuracy import Predictions, label_rank, predict, wilson_interval
from robustft.ensemble._checks import check_labels, check_logits, label_columns, subset_index
from robustft.ensemble.calibrate import matching_temperature as fit_temperature
from robustft.errors import InputError
from robustft.evaluate.calibration import binned_error, equal_mass_error, mean_squares

__all__ = [
    "fit_temperature",
    "least_group",
    "macro_f1",
    "mean_f1",
    "mean_per_class",
    "mean_recall",
    "measures",
    "predictions",
    "top1",
    "top_k",
    "wilson_interval",
    "worst_group",
]

_TOP = 5
_NUMBERS = 2**22  # of a batch whose softmax is computed at once: 32 MB


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


def top_k(
    logits: Tensor, labels: Tensor, k: int = 5, class_subset: Tensor | Sequence[int] | None = None
) -> float:
    """The share of samples whose label is among the k highest logits, in [0, 1].

    Among equal logits at the k-th place none counts: a model that says the same of all classes is
    right about nothing. Arguments and errors as for `top1`; InputError for k below 1.
    """
    if k < 1:
        raise InputError(f"k: got {k}, expected at least 1")
    found = predictions(logits, labels, class_subset)
    assert found.rank is not None
    return float((found.rank < k).double().mean())


def mean_per_class(
    logits: Tensor, labels: Tensor, class_subset: Tensor | Sequence[int] | None = None
) -> float:
    """The mean over the classes that occur in `labels` of the share of their samples that is right,
    in [0, 1]: where classes are of unequal size, what top-1 is not. Arguments and errors as for
    `top1`."""
    _check(logits, labels, class_subset)
    return mean_recall(predict(_masked(logits, class_subset)), labels)


def mean_recall(predicted: Tensor, labels: Tensor) -> float:
    """`mean_per_class` of predicted classes, int64 [N], -1 for none; labels int [N]. Errors:
    none."""
    right = (predicted.cpu() == labels.cpu()).double()
    _, which, count = labels.cpu().unique(return_inverse=True, return_counts=True)
    hits = torch.zeros(len(count), dtype=torch.float64).index_add_(0, which, right)
    return float((hits / count).mean())


def measures(found: Predictions, labels: Tensor, classes: int) -> dict[str, float]:
    """All that a result line says of predictions on one data set of labels int [N].

    classes: how many may be predicted; of five or fewer the top five say nothing, and are left out.

    Returns: top1, top5, mean-per-class, ece, adaptive-ece, nll, brier; nll and brier are NaN, as
    the calibration errors are, for a model that has diverged. What needs the model's word on the
    labels is left out where the predictions lack it. Errors: none.
    """
    labels = labels.cpu()
    right = found.correct(labels)
    values = {
        "top1": float(right.double().mean()),
        "mean-per-class": mean_recall(found.predicted, labels),
        "ece": binned_error(found.confidence, right),
        "adaptive-ece": equal_mass_error(found.confidence, right),
    }
    if found.rank is not None and classes > _TOP:
        values["top5"] = float((found.rank < _TOP).double().mean())
    if found.log_likelihood is not None and found.squares is not None:
        log_p = found.log_likelihood.double()
        values["nll"] = float(-log_p.clamp(max=0).mean())  # rounding may bring p above 1
        values["brier"] = mean_squares(found.squares, log_p.exp())
    return values


def predictions(
    logits: Tensor, labels: Tensor, class_subset: Tensor | Sequence[int] | None = None
) -> Predictions:
    """What logits [N, C] predict within the classes of the subset, and what their softmax says of
    it and of the labels. Computed in float64, a batch at a time.

    Errors: as for `top1`.
    """
    _check(logits, labels, class_subset)
    parts = []
    step = max(1, _NUMBERS // logits.shape[1])
    for z, own in zip(logits.split(step), labels.to(logits.device).long().split(step), strict=True):
        z = _masked(z, class_subset)
        log_p = z.double().log_softmax(dim=1)
        p = log_p.exp()
        of_label = log_p.gather(1, own.unsqueeze(1)).squeeze(1)
        squares = p.square().sum(dim=1)
        parts.append(Predictions(predict(z), p.amax(dim=1), label_rank(z, own), of_label, squares))
    return Predictions.joined(parts)


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
    rows, classes = logits.shape
    label_columns(labels, rows, classes, subset_index(class_subset, classes))


def _masked(logits: Tensor, class_subset: Tensor | Sequence[int] | None) -> Tensor:
    """Logits with -Inf outside the classes of the subset."""
    index = subset_index(class_subset, logits.shape[1])
    if index is None:
        return logits
    outside = torch.ones(logits.shape[1], dtype=torch.bool)
    outside[index] = False
    return logits.masked_fill(outside.to(logits.device), -torch.inf)
