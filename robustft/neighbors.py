"""Exact nearest neighbours with scikit-learn's interface, by `robustft.ops.knn`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from robustft.errors import InputError
from robustft.ops import FeatureBank, knn
from robustft.optional import require

_base = require("sklearn.base", extra="train")
_validation = require("sklearn.utils.validation", extra="train")


class KNeighbors(_base.BaseEstimator):  # type: ignore[name-defined]
    """The k nearest rows of what it was fitted on, exactly, as sklearn.neighbors.NearestNeighbors.

    n_neighbors: k, where `kneighbors` is given none. backend: as in `robustft.ops.knn`. Distances
    are Euclidean. float32 arrays are searched by the kernels; float64 arrays stay float64, which
    the reference alone serves.

    The largest of the k distances is the score of k-nearest-neighbour OOD detection (Sun et al.,
    ICML 2022, arXiv 2204.06507), with rows of unit length.

    Fitted: `n_features_in_`, `n_samples_fit_`, and `bank_`, the FeatureBank. Errors: ValueError for
    what scikit-learn refuses, and for a k that there are not as many rows for.
    """

    def __init__(self, n_neighbors: int = 5, *, backend: str = "auto") -> None:
        self.n_neighbors = n_neighbors
        self.backend = backend

    def fit(self, X: Any, y: Any = None) -> KNeighbors:
        """Pack the rows [N, D]. y is not used."""
        rows = self._checked(X, reset=True)
        self.bank_ = FeatureBank(torch.from_numpy(rows))
        self.n_samples_fit_ = len(rows)
        return self

    def kneighbors(
        self,
        X: Any = None,
        n_neighbors: int | None = None,
        return_distance: bool = True,
    ) -> Any:
        """(distances [Q, k] ascending, indices [Q, k] int64) of the queries X [Q, D], or indices.

        Without X the fitted rows are the queries, and none is its own neighbour.
        """
        _validation.check_is_fitted(self)
        k = self.n_neighbors if n_neighbors is None else n_neighbors
        most = self.n_samples_fit_ - (X is None)
        if not 1 <= k <= most:
            raise InputError(f"n_neighbors: got {k}, expected 1 to {most}, as many as there are")
        if X is None:
            found = _others(
                *knn(self.bank_.rows, self.bank_, k + 1, squared=False, backend=self.backend)
            )
        else:
            queries = torch.from_numpy(self._checked(X, reset=False))
            found = knn(queries, self.bank_, k, squared=False, backend=self.backend)
        distances, indices = (x.numpy() for x in found)
        return (distances, indices) if return_distance else indices

    def _checked(self, X: Any, *, reset: bool) -> np.ndarray[Any, Any]:
        rows = _validation.validate_data(
            self, X, reset=reset, dtype=[np.float32, np.float64, np.float16], order="C"
        )
        return np.require(rows, requirements="W")  # torch warns of arrays that it may not write


def _others(distances: torch.Tensor, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each row's k + 1 nearest, those that are not the row itself; where equal rows crowd it
    out, all but the last."""
    rows = torch.arange(len(indices))[:, None]
    itself = indices == rows
    itself[:, -1] |= ~itself.any(dim=1)
    shape = len(indices), indices.shape[1] - 1
    return distances[~itself].view(shape), indices[~itself].view(shape)
