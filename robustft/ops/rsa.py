"""rsa: the correlation of two sets of distances, before and after fine-tuning."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robustft.errors import InputError
from robustft.ops import _checks
from robustft.ops._arrays import answers_in_kind
from robustft.ops._register import register
from robustft.ops._resolve import resolve

_METRICS = ("euclidean", "cosine")
_METHODS = ("pearson", "spearman")


@answers_in_kind
def rsa(
    features_pretrained: Tensor,
    features_finetuned: Tensor,
    *,
    metric: str = "euclidean",
    method: str = "pearson",
    backend: str = "auto",
) -> Tensor:
    """How much of the geometry is kept: the correlation of all N(N−1)/2 pairwise distances.

    1 for a translation, rotation or scaling of all rows (metric "euclidean"). DiVE (arXiv
    2511.09973) reports such a score. The N×N matrices are never held.

    Args:
        features_pretrained: [N, D], float32, bfloat16, float16 or float64, any strides, N ≥ 3.
        features_finetuned: [N, D'], row i of the same sample.
        metric: "euclidean", or "cosine" (1 − cosine).
        method: "pearson", or "spearman" (mean ranks for ties; up to 5,000 rows all pairs are
            ranked, beyond them ranks are read from 16,384 bins, right to about 1e-4).
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Returns: a float64 scalar without gradient. NaN where no correlation exists: all distances
        equal on either side, a zero row under "cosine", NaN or Inf in a feature.

    Errors: InputError or InputTypeError for bad shapes, dtypes, devices, metric, method, backend.
    """
    _checks.matrix("features_pretrained", features_pretrained, rows="N")
    _checks.matrix("features_finetuned", features_finetuned, rows="N")
    _checks.same_device("features_finetuned", features_finetuned, features_pretrained)
    rows = features_pretrained.shape[0]
    if rows < 3:
        raise InputError(f"features_pretrained: got {rows} rows, expected at least 3")
    if features_finetuned.shape[0] != rows:
        raise InputError(
            f"features_finetuned: got {features_finetuned.shape[0]} rows, expected {rows}"
        )
    if metric not in _METRICS:
        raise InputError(f"metric: got {metric!r}, expected one of {_METRICS}")
    if method not in _METHODS:
        raise InputError(f"method: got {method!r}, expected one of {_METHODS}")
    backend = resolve("rsa", features_pretrained, backend)
    result: Tensor = _correlation(
        features_pretrained.detach(), features_finetuned.detach(), metric, method, backend
    )
    return result


def _fake(a: Tensor, *_: Any) -> Tensor:
    return a.new_empty((), dtype=torch.float64)


_correlation = register(
    "rsa", "correlation", ("Tensor a", "Tensor b", "str metric", "str method"), "Tensor", _fake
)
