"""Noise, drawn for each pixel and channel by itself."""

from __future__ import annotations

import numpy as np

from robustft.data.corruptions.levels import Bytes, eight_bits, unit


def gaussian_noise(pixels: Bytes, severity: int, rng: np.random.Generator) -> Bytes:
    """Gaussian: as in low light."""
    deviation = (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1]
    return eight_bits(unit(pixels) + rng.normal(scale=deviation, size=pixels.shape))


def shot_noise(pixels: Bytes, severity: int, rng: np.random.Generator) -> Bytes:
    """Poisson: so many photons make a pixel white."""
    photons = (60, 25, 12, 5, 3)[severity - 1]
    return eight_bits(rng.poisson(unit(pixels) * photons) / photons)


def impulse_noise(pixels: Bytes, severity: int, rng: np.random.Generator) -> Bytes:
    """Salt and pepper: this share of the values becomes 0 or 255, either as often."""
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1]
    struck = rng.random(pixels.shape) <= share
    extreme = np.where(rng.random(pixels.shape) <= 0.5, 255, 0)
    return np.where(struck, extreme, pixels).astype(np.uint8)
