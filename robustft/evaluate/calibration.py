"""How far probabilities are from what happens: calibration errors and proper scores."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robustft.ensemble._checks import check_labels, check_logits, check_positive
from robustft.errors import InputError

BINS = 15


def nll(logits: Tensor, labels: Tensor, *, temperature: float = 1.0) -> float:
    """Mean negative log-likelihood, in nats, of softmax(logits / temperature).

    Log-probabilities are logits too: their softmax is the distribution itself.
    """
    check_logits("logits", logits)
    check_labels("labels", labels, len(logits), logits.shape[1])
    log_p = (logits.double() / check_positive("temperature", temperature)).log_softmax(dim=1)
    return float(-log_p.gather(1, labels.to(logits.device).long().unsqueeze(1)).mean())


def brier(probabilities: Tensor, labels: Tensor) -> float:
    """Brier's score (1950) of all classes: the mean of Σ_c (p_c − 1[c is the label])², in [0, 2].

    Arguments and errors as for `ece`.
    """
    p = _probabilities(probabilities, labels)
    own = p.gather(1, labels.to(p.device).long().unsqueeze(1)).squeeze(1)
    return mean_squares(p.square().sum(dim=1), own)


def mean_squares(squares: Tensor, own: Tensor) -> float:
    """`brier` of Σ_c p_c² and the label's probability, both floating [N]. Errors: none."""
    # Σ_c (p_c − y_c)² = Σ_c p_c² − 2·p_y + 1, which rounding may bring below 0.
    return float((squares.double() - 2 * own.double() + 1).clamp(min=0).mean())


def ece(probabilities: Tensor, labels: Tensor, *, bins: int = BINS) -> float:
    """Expected calibration error: Σ_b n_b/N·|accuracy_b − confidence_b| over equal-width bins
    (Guo et al., arXiv 1706.04599).

    Args: probabilities [N, C] whose rows sum to 1; labels int [N].
    Errors: InputError for other shapes, rows that do not sum to 1, or bins below 1.
    """
    return binned_error(*_confidence(probabilities, labels, bins), bins=bins)


def adaptive_ece(probabilities: Tensor, labels: Tensor, *, bins: int = BINS) -> float:
    """`ece` over bins of equally many samples (Nguyen and O'Connor, arXiv 1508.05154): where a
    model is nearly always sure, most equal-width bins hold next to nothing.

    The samples in the order of their confidence are cut into `bins` parts, the first ones a sample
    longer where N does not divide. Among equal confidences hits are taken as spread evenly, so
    that the order of the samples has no influence. Arguments and errors as for `ece`.
    """
    return equal_mass_error(*_confidence(probabilities, labels, bins), bins=bins)


def binned_error(confidence: Tensor, right: Tensor, *, bins: int = BINS) -> float:
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


def equal_mass_error(confidence: Tensor, right: Tensor, *, bins: int = BINS) -> float:
    """`adaptive_ece` of what is predicted, as `binned_error` is `ece`. Errors: none."""
    confidence, right = confidence.double(), right.to(confidence.device).double()
    if bool(confidence.isnan().any()):
        return math.nan
    ordered, order = confidence.sort()
    _, tie, count = ordered.unique_consecutive(return_inverse=True, return_counts=True)
    hits = torch.zeros_like(count, dtype=torch.float64).index_add_(0, tie, right[order])
    gap = (hits / count)[tie] - ordered
    return float(sum(part.sum().abs() for part in gap.tensor_split(bins)) / len(right))


def _confidence(probabilities: Tensor, labels: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """The probability of what is predicted, [N], and whether it is right, bool [N]."""
    if bins < 1:
        raise InputError(f"bins: got {bins}, expected at least 1")
    confidence, predicted = _probabilities(probabilities, labels).max(dim=1)
    return confidence, predicted == labels.to(predicted.device)


def _probabilities(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Checked, in float64."""
    check_logits("probabilities", probabilities)
    check_labels("labels", labels, len(probabilities), probabilities.shape[1])
    found = probabilities.double()
    if not bool(((found.sum(dim=1) - 1).abs() < 1e-2).all()):
        raise InputError("probabilities: got other sums of rows, perhaps of logits, expected 1")
    return found
