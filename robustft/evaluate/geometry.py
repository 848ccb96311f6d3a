"""How much of the pre-trained geometry of a data set a fine-tuned encoder keeps."""

from __future__ import annotations

from torch import Tensor

from robustft.ensemble._checks import check_matrix
from robustft.errors import InputError


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

    check_matrix("pretrained", pretrained)
    check_matrix("finetuned", finetuned, rows=len(pretrained))
    if len(pretrained) < 3:
        raise InputError(f"pretrained: got {len(pretrained)} samples, expected at least 3")
    return {
        f"RSA:{metric}": float(
            rsa(pretrained, finetuned, metric=metric, method=method, backend=backend)
        )
        for metric in ("euclidean", "cosine")
    }
