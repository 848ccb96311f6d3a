"""Pixels as bytes and as numbers from 0 to 1, as the release turns one into the other."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
"""[H, W, 3], or [H, W] of a layer in grey."""


def unit(pixels: Bytes) -> NDArray[np.float64]:
    """In [0, 1]."""
    return pixels / 255.0


def eight_bits(values: NDArray[Any]) -> Bytes:
    """Of numbers in [0, 1], what lies outside being cut off: scaled, and rounded down."""
    return (np.clip(values, 0.0, 1.0) * 255).astype(np.uint8)
