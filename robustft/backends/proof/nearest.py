"""What a backend's nearest must show: exact distances and indices, of banks large enough that its
screening takes part."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from robustft.backends.proof.problem import Limit, Problem, normal

_ROWS = 8200  # smaller banks are not screened


def run(
    module: ModuleType, inputs: tuple[Any, ...], packed: list[Tensor] | None = None
) -> dict[str, Tensor]:
    queries, rows, k = inputs
    packed = module.pack(rows) if packed is None else packed
    distances, indices = module.knn(queries, rows, packed, k, True)
    # Rows that are equally near to float32 may come in either order: each index's own distance is
    # looked at, and that none comes twice.
    own = queries.double()[:, None] - rows.double()[indices.clamp_min(0)]
    return {
        "distances": distances,
        "distances of the indices": own.square().sum(-1),
        "repeated indices": (indices.sort(1).values.diff(dim=1) == 0).sum(),
        "k-th distance": module.kth_distance(queries, rows, packed, k, True),
    }


def problems(dtype: torch.dtype) -> Iterator[Problem]:
    """Of float32 alone: other features are taken to it first."""
    yield _problem("7 queries, 8,200 rows of width 40, k = 5", 7, 40, 5)
    yield _problem("19 queries, 8,200 rows of width 33, k = 100", 19, 33, 100)
    # Rows in bunches around few centres, in a periodic order.
    bunched = _problem("5 queries, 8,200 rows of width 24 in bunches, k = 64", 5, 24, 64)
    bunched.inputs[1][:] = normal(3, 64, 24).repeat(129, 1)[:_ROWS] + 0.01 * bunched.inputs[1]
    yield bunched
    bad = _problem("3 queries, one with NaN", 3, 40, 5)
    bad.inputs[0][1, 7] = torch.nan
    yield bad._replace(run=_distances)


#: Queries of the searches that backends are compared at (robustft tune).
ROWS = (16, 128, 1024)


def speed(dtype: torch.dtype, rows: int = 1024, width: int = 256) -> Problem:
    """A bank whose products take the time, for as many queries as are asked for."""
    name = f"{rows:,} queries, 32,768 rows of width {width:,}"
    problem = _problem(name, rows, width, 64, rows=32768)
    return problem._replace(run=_Searches())


class _Searches:
    """`run`, with what a module packs of a bank made at its first search, as FeatureBank does."""

    def __init__(self) -> None:
        self.packed: dict[tuple[str, int], list[Tensor]] = {}

    def __call__(self, module: ModuleType, inputs: tuple[Any, ...]) -> dict[str, Tensor]:
        rows = inputs[1]
        place = module.__name__, rows.data_ptr()
        if place not in self.packed:
            self.packed[place] = module.pack(rows)
        return run(module, inputs, self.packed[place])


def _distances(module: ModuleType, inputs: tuple[Any, ...]) -> dict[str, Tensor]:
    """The indices of a query that is not finite are no row's."""
    found = run(module, inputs)
    return {name: found[name] for name in ("distances", "k-th distance")}


def _problem(name: str, queries: int, width: int, k: int, rows: int = _ROWS) -> Problem:
    bank = normal(1, rows, width)
    inputs = (normal(2, queries, width), bank, k)
    limit = Limit(1e-5)
    limits = dict.fromkeys(("distances", "distances of the indices", "k-th distance"), limit)
    limits["repeated indices"] = Limit(0.0)
    return Problem(name, run, inputs, limits)
