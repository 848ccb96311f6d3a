"""What a backend's rsa must show: the correlation of all distances."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from robustft.backends.proof.problem import Limit, Problem, normal


def run(module: ModuleType, inputs: tuple[Any, ...]) -> dict[str, Tensor]:
    return {"correlation": module.correlation(*inputs)}


def problems(dtype: torch.dtype) -> Iterator[Problem]:
    for metric, method in (("euclidean", "pearson"), ("cosine", "pearson"), ("cosine", "spearman")):
        yield _problem(f"150 rows, {metric}, {method}", dtype, 150, metric, method)
    bad = _problem("20 rows with NaN", dtype, 20, "euclidean", "pearson")
    bad.inputs[0][3, 5] = torch.nan
    yield bad


#: Rows of the sets that backends are compared at (robustft tune).
ROWS = (256, 1024, 4096)


def speed(dtype: torch.dtype, rows: int = 4096, width: int = 512) -> Problem:
    """Enough rows that their products take the time, or as many as are asked for."""
    name = f"{rows:,} rows of width {width:,}"
    return _problem(name, dtype, rows, "euclidean", "pearson", width)


def _problem(
    name: str, dtype: torch.dtype, rows: int, metric: str, method: str, width: int = 41
) -> Problem:
    before = normal(1, rows, width)
    after = before @ normal(2, width, width + 1) + 3 * normal(3, rows, width + 1)
    # Ranks jump where float32 cannot tell two distances apart.
    limit = Limit(0.0, 1e-5 if method == "pearson" else 2e-3)
    inputs = (before.to(dtype), after.to(dtype), metric, method)
    return Problem(name, run, inputs, {"correlation": limit}, misaligned=True)
