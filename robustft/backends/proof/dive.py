"""What a backend's dive must show: losses, the average and gradients, of rows of any width."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from robustft.backends.proof.problem import ROUNDING, Limit, Problem, normal


def run(module: ModuleType, inputs: tuple[Any, ...]) -> dict[str, Tensor]:
    *features, mean, momentum, normalize, grad_avl, grad_pvl = inputs
    avl, pvl, new_mean = module.forward(*features, mean, momentum, normalize)
    image, text = module.backward(*features, new_mean, grad_avl, grad_pvl, normalize)
    return {
        "AVL": avl,
        "PVL": pvl,
        "mean": new_mean,
        "gradient of image": image,
        "gradient of text": text,
    }


def problems(dtype: torch.dtype) -> Iterator[Problem]:
    yield _problem("67 rows of width 512", dtype, 67, 512, True)
    yield _problem("129 rows of width 77", dtype, 129, 77, True)
    yield _problem("1 row of width 1,100", dtype, 1, 1100, False)
    bad = _problem("9 rows of width 33 with NaN", dtype, 9, 33, True)
    bad.inputs[1][2, 4] = torch.nan
    yield bad._replace(run=_losses)


#: Rows of the batches that backends are compared at (robustft tune).
ROWS = (64, 512, 4096, 16384)


def speed(dtype: torch.dtype, rows: int = 16384, width: int = 512) -> Problem:
    """Enough rows that reading them takes the time, or as many as are asked for."""
    return _problem(f"{rows:,} rows of width {width:,}", dtype, rows, width, True)


def _losses(module: ModuleType, inputs: tuple[Any, ...]) -> dict[str, Tensor]:
    return {name: run(module, inputs)[name] for name in ("AVL", "PVL")}


def _problem(name: str, dtype: torch.dtype, rows: int, width: int, normalize: bool) -> Problem:
    before = normal(1, rows, width), normal(2, rows, width)
    after = [x + 0.3 * normal(seed, rows, width) for seed, x in enumerate(before, 3)]
    features = (after[0].to(dtype), before[0].to(dtype), after[1].to(dtype), before[1].to(dtype))
    mean = 0.01 * normal(5, width)
    inputs = (*features, mean, 0.9, normalize, torch.tensor(1.0), torch.tensor(-0.5))
    gradient = Limit(ROUNDING[dtype], 1e-7)
    limits = {
        "AVL": Limit(1e-5),
        "PVL": Limit(1e-5),
        "mean": Limit(1e-5, 1e-7),
        "gradient of image": gradient,
        "gradient of text": gradient,
    }
    return Problem(name, run, inputs, limits, misaligned=width % 2 == 1)
