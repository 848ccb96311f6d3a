"""Transforms of images: which of them draw at random, and drawing as a pure function of a seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

Transform = Callable[[Any], Any]

# Transforms that draw nothing at random; any other is taken to be random.
_DETERMINISTIC = frozenset(
    (
        *("Resize", "CenterCrop", "CenterCropOrPad", "Pad", "Grayscale", "Normalize"),
        *("ToTensor", "PILToTensor", "ConvertImageDtype", "ToImage", "ToDtype"),
        *("MaybeConvertMode", "MaybeToTensor", "_convert_to_rgb"),  # open_clip's
    )
)


def is_deterministic(transform: Callable[..., Any] | None) -> bool:
    """Whether `transform` (None, a known one, or a Compose of such) draws nothing at random.

    An unknown transform counts as random unless it says `deterministic = True`.
    """
    if transform is None or getattr(transform, "deterministic", False):
        return True
    steps = getattr(transform, "transforms", None)
    if steps is not None and type(transform).__name__ == "Compose":
        return all(is_deterministic(step) for step in steps)
    name = getattr(transform, "__name__", type(transform).__name__)
    return name in _DETERMINISTIC


@contextmanager
def seeded(seed: Sequence[int]) -> Iterator[None]:
    """Run a block with torch's, Python's and NumPy's global generators seeded; then restore them.

    `seed`: integers ≥ 0. About 0.1 ms on a CPU.
    """
    first, second, third = np.random.SeedSequence(list(seed)).generate_state(3).tolist()
    saved = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        # The CPU generator alone: torch.manual_seed would also touch every CUDA device.
        torch.default_generator.manual_seed(first)
        random.seed(second)
        np.random.seed(third)  # noqa: NPY002 (transforms may use the global generator)
        yield
    finally:
        torch.set_rng_state(saved[0])
        random.setstate(saved[1])
        np.random.set_state(saved[2])  # noqa: NPY002
