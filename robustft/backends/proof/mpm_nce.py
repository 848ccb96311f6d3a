"""What a backend's mpm_nce must show: values and gradients by labels, masks and pairs."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from robustft.backends.options import MpmNceOptions, Positives
from robustft.backends.proof.problem import ROUNDING, Limit, Problem, unit


def run(module: ModuleType, inputs: tuple[Any, ...]) -> dict[str, Tensor]:
    image, text, positives, scale, options, grad = inputs
    loss, *saved = module.forward(image, text, positives, scale, options, 0)
    grads = module.backward(image, text, positives, scale, *saved, grad, options, True, True)
    names = "gradient of image", "gradient of text", "gradient of scale"
    return {"loss": loss, **dict(zip(names, grads, strict=True))}


def problems(dtype: torch.dtype) -> Iterator[Problem]:
    generator = torch.Generator().manual_seed(0)
    names = torch.randint(-(2**62), 2**62, (9,), generator=generator)
    of_images, of_texts = (
        names[torch.randint(9, (count,), generator=generator)] for count in (131, 67)
    )
    of_images[::7] = -100
    classes = of_images[:129]
    mask = torch.rand(1030, 70, generator=generator) < 0.1
    mask[0, 0] = True
    plain = Positives(None, None, None, -100)
    yield _problem("129 pairs of width 64", dtype, 129, 129, 64, plain, 100.0)
    yield _problem(
        "131 images, 67 texts of width 33, labels", dtype, 131, 67, 33,
        Positives(of_images, of_texts, None, -100), 30.0, MpmNceOptions(0.1, 0.2, True),
    )  # fmt: skip
    # Blocks of the CUDA kernels: nine, to which clusters of two need a spare one.
    yield _problem(
        "1,030 images, 70 texts of width 7, mask", dtype, 1030, 70, 7,
        Positives(None, None, mask, -100), 5.0, MpmNceOptions(0.05, 0.0, False),
    )  # fmt: skip
    yield _problem(
        "129 samples of width 708 against each other", dtype, 129, 129, 708,
        Positives(classes, classes, None, -100), 10.0, MpmNceOptions(0.0, 0.1, True, True),
    )  # fmt: skip
    # More than one tile of texts a block; tiles without ends; then rows that no block of the CUDA
    # kernels holds, as above two of a cluster.
    many = names[torch.randint(9, (390,), generator=generator)]
    yield _problem(
        "20 images, 390 texts of width 8, labels", dtype, 20, 390, 8,
        Positives(many[:20], many, None, -100), 20.0,
    )  # fmt: skip
    many = names[torch.randint(9, (256,), generator=generator)]
    yield _problem(
        "256 images and texts of width 64, labels", dtype, 256, 256, 64,
        Positives(many, many.flip(0), None, -100), 30.0, MpmNceOptions(0.1, 0.2, True),
    )  # fmt: skip
    yield _problem("70 pairs of width 1,000", dtype, 70, 70, 1000, plain, 30.0)
    bad = _problem("17 pairs of width 40 with NaN", dtype, 17, 17, 40, plain, 10.0)
    bad.inputs[0][3, 5] = torch.nan
    yield bad._replace(run=_loss)


#: Pairs of the batches that backends are compared at (robustft tune).
ROWS = (64, 256, 1024, 4096)


def speed(dtype: torch.dtype, rows: int = 2048, width: int = 512) -> Problem:
    """A batch whose time is that of the products, or as many pairs as are asked for."""
    plain = Positives(None, None, None, -100)
    name = f"{rows:,} pairs of width {width:,}"
    return _problem(name, dtype, rows, rows, width, plain, 100.0)


def _loss(module: ModuleType, inputs: tuple[Any, ...]) -> dict[str, Tensor]:
    """Alone: gradients of a loss that is NaN are not specified."""
    image, text, positives, scale, options, _ = inputs
    return {"loss": module.forward(image, text, positives, scale, options, 0)[0]}


def _problem(
    name: str,
    dtype: torch.dtype,
    rows: int,
    columns: int,
    width: int,
    positives: Positives,
    scale: float,
    options: MpmNceOptions = MpmNceOptions(0.0, 0.0, True),  # noqa: B008 (immutable)
) -> Problem:
    inputs = (
        unit(1, rows, width).to(dtype), unit(2, columns, width).to(dtype), positives,
        torch.tensor(scale), options, torch.tensor(1.5),
    )  # fmt: skip
    # Logits near `scale` are held to half an ulp of theirs; p − w vanishes when nothing is left to
    # learn, so that the floor of a gradient is rounding of p times the scale.
    of_feature = Limit(ROUNDING[dtype], 5e-6 * max(1.0, scale))
    limits = {
        "loss": Limit(2e-6, 2e-6 * scale),
        "gradient of image": of_feature,
        "gradient of text": of_feature,
        "gradient of scale": Limit(2e-5, 5e-6 * max(1.0, scale)),
    }
    return Problem(name, run, inputs, limits, misaligned=width % 2 == 1)
