"""How much of the pre-trained geometry of a data set a fine-tuned encoder keeps."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from robustft.ensemble._checks import check_matrix
from robustft.errors import InputError

_ROWS = 8192  # whose products are summed in float64 at once


def geometry_scores(pretrained: Tensor, finetuned: Tensor) -> dict[str, float]:
    """All that a result line says of one data set's features [N, D], N ≥ 3, of two models.

    Returns: `rsa_scores`, "CKA:linear" and "difference-spread". Errors: as for these.
    """
    return {
        **rsa_scores(pretrained, finetuned),
        "CKA:linear": linear_cka(pretrained, finetuned),
        "difference-spread": difference_spread(pretrained, finetuned),
    }


def rsa_scores(
    pretrained: Tensor,
    finetuned: Tensor,
    *,
    method: str = "pearson",
    backend: str = "auto",
) -> dict[str, float]:
    """Representational similarity: the correlation of two models' pairwise distances.

    DiVE (arXiv 2511.09973) reports one such score without the recipe's details; both distances
    are given here. A common translation of all features keeps the Euclidean score at exactly 1.

    Args:
        pretrained, finetuned: [N, D] features of the same N ≥ 3 samples, in order; the widths
            may differ.

    Returns: {"RSA:euclidean": r, "RSA:cosine": r}.

    Errors: InputError for other shapes, unequal numbers of samples, or fewer than three.
    """
    from robustft.ops import rsa

    _check(pretrained, finetuned, least=3)
    return {
        f"RSA:{metric}": float(
            rsa(pretrained, finetuned, metric=metric, method=method, backend=backend)
        )
        for metric in ("euclidean", "cosine")
    }


def linear_cka(pretrained: Tensor, finetuned: Tensor) -> float:
    """Linear centred kernel alignment (Kornblith et al., arXiv 1905.00414), in [0, 1]:

        ‖YᵀX‖² / (‖XᵀX‖·‖YᵀY‖)   in Frobenius norms, of features less their mean

    1 for features that differ by a rotation, a common factor and a translation alone. The products
    are D × D, so that N may be large. NaN where all features of a model are one.

    Args: pretrained, finetuned: [N, D] features of the same N ≥ 2 samples, in order; the widths
    may differ.

    Errors: InputError for other shapes, unequal numbers of samples, or fewer than two.
    """
    _check(pretrained, finetuned, least=2)
    both = xx = yy = torch.zeros((), dtype=torch.float64, device=pretrained.device)
    for x, y in zip(_centred(pretrained), _centred(finetuned), strict=True):
        both, xx, yy = both + y.T @ x, xx + x.T @ x, yy + y.T @ y
    scale = float(xx.norm() * yy.norm())
    return float(both.square().sum()) / scale if scale > 0 else math.nan


def difference_spread(pretrained: Tensor, finetuned: Tensor) -> float:
    """How far the change of the features is from a common translation: the root mean square of
    u − ū over that of the pre-trained features less their own mean, with the difference vectors
    u = finetuned − pretrained.

    DiVE (arXiv 2511.09973) holds that fine-tuning keeps the geometry where all u are equal, and
    trains towards that. 0: every feature moved by one vector, or none did; 1: the difference
    vectors are spread as widely as the pre-trained features. NaN where these are all one.

    Args: pretrained, finetuned: [N, D] features of the same N ≥ 2 samples, in order.

    Errors: InputError for other shapes, or fewer than two samples.
    """
    _check(pretrained, finetuned, least=2)
    check_matrix("finetuned", finetuned, columns=pretrained.shape[1])
    spread = own = 0.0
    for before, after in zip(_centred(pretrained), _centred(finetuned), strict=True):
        spread += float((after - before).square().sum())
        own += float(before.square().sum())
    return math.sqrt(spread / own) if own > 0 else math.nan


def _centred(features: Tensor) -> Iterator[Tensor]:
    """Features [N, D] less their mean, in float64, a batch at a time; zeros where all are one."""
    first = features[0].double()  # whose difference from an equal row is 0, unlike a rounded mean's
    batches = features.split(_ROWS)
    shift = torch.stack([(part.double() - first).sum(dim=0) for part in batches]).sum(dim=0)
    for part in batches:
        yield part.double() - first - shift / len(features)


def _check(pretrained: Tensor, finetuned: Tensor, *, least: int) -> None:
    check_matrix("pretrained", pretrained)
    check_matrix("finetuned", finetuned, rows=len(pretrained))
    if len(pretrained) < least:
        raise InputError(f"pretrained: got {len(pretrained)} samples, expected at least {least}")
