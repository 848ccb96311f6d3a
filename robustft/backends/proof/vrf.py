"""What a backend's vrf must show: (log-)probabilities and gradients."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from robustft.backends.options import VrfOptions
from robustft.backends.proof.problem import ROUNDING, Limit, Problem, normal


def run(module: ModuleType, inputs: tuple[Any, ...]) -> dict[str, Tensor]:
    finetuned, zeroshot, distance, grad, options = inputs
    mixed = module.forward(finetuned, zeroshot, distance, options)
    grads = module.backward(finetuned, zeroshot, distance, grad, options)
    names = (f"gradient of {name}" for name in ("logits_finetuned", "logits_zeroshot", "distance"))
    return {"result": mixed, **dict(zip(names, grads, strict=True))}


def problems(dtype: torch.dtype) -> Iterator[Problem]:
    yield _problem("65 rows of 1,000 classes", dtype, 65, 1000, False)
    yield _problem("33 rows of 129 classes, log", dtype, 33, 129, True)
    yield _problem("7 rows of 3 classes, log", dtype, 7, 3, True)
    bad = _problem("5 rows of 40 classes with NaN", dtype, 5, 40, False)
    bad.inputs[0][2, 4] = torch.nan
    yield bad._replace(run=_result)


#: Rows of the batches that backends are compared at (robustft tune).
ROWS = (16, 256, 8192)


def speed(dtype: torch.dtype, rows: int = 8192, width: int = 1000) -> Problem:
    """Enough rows that reading them takes the time, or as many as are asked for."""
    return _problem(f"{rows:,} rows of {width:,} classes", dtype, rows, width, False)


def _result(module: ModuleType, inputs: tuple[Any, ...]) -> dict[str, Tensor]:
    finetuned, zeroshot, distance, _, options = inputs
    return {"result": module.forward(finetuned, zeroshot, distance, options)}


def _problem(name: str, dtype: torch.dtype, rows: int, classes: int, log: bool) -> Problem:
    logits = [(3 * normal(seed, rows, classes)).to(dtype) for seed in (1, 2)]
    inputs = (
        *logits, normal(3, rows).square(), normal(4, rows, classes).to(dtype),
        VrfOptions(1.5, 0.6, 2.0, 1.0, log),
    )  # fmt: skip
    gradient = Limit(2 * ROUNDING[dtype], 1e-5)
    limits = {
        "result": Limit(ROUNDING[dtype], 1e-6 if log else 1e-30),
        "gradient of logits_finetuned": gradient,
        "gradient of logits_zeroshot": gradient,
        "gradient of distance": Limit(4e-5, 1e-5),
    }
    return Problem(name, run, inputs, limits, misaligned=classes % 2 == 1)
