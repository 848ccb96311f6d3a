"""What is done to the finished image: contrast, elastic deformation, pixelation, JPEG."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustft.data.corruptions.levels import Bytes, eight_bits, unit
from robustft.optional import require

_UNIT = 244  # pixels; the release means its images' 224


def contrast(pixels: Bytes, severity: int, rng: np.random.Generator) -> Bytes:
    """Values move towards their channel's mean."""
    kept = (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1]
    values = unit(pixels)
    mean = values.mean(axis=(0, 1), keepdims=True)
    return eight_bits((values - mean) * kept + mean)


def elastic_transform(pixels: Bytes, severity: int, rng: np.random.Generator) -> Bytes:
    """A random affine map, then a smooth random displacement of each pixel."""
    size, smoothness, corner = (
        _UNIT * share
        for share in (
            (2, 0.7, 0.1),
            (2, 0.08, 0.2),
            (0.05, 0.01, 0.02),
            (0.07, 0.01, 0.02),
            (0.12, 0.01, 0.02),
        )[severity - 1]
    )
    image = affine(unit(pixels), rng.uniform(-corner, corner, size=(3, 2)))
    blur = require("scipy.ndimage", extra="train").gaussian_filter
    right, down = (
        size * blur(rng.uniform(-1, 1, pixels.shape[:2]), smoothness, mode="reflect", truncate=3)
        for _ in range(2)
    )
    rows, columns = np.indices(pixels.shape[:2])
    return eight_bits(_sampled(image, rows + down, columns + right, mode="reflect"))


def affine(image: NDArray[np.float64], moves: NDArray[np.float64]) -> NDArray[np.float64]:
    """The image under the affine map that moves three points by `moves` [3, 2], (right, down): with
    c the middle and s a third of the shorter side, (c + s, c + s), (c + s, c − s), (c − s, c − s).
    Linear interpolation; the image goes on beyond its edges as in a mirror, edges standing once.
    """
    height, width = image.shape[:2]
    middle, third = np.array([height, width]) // 2, min(height, width) // 3
    points = middle + third * np.array([[1, 1], [1, -1], [-1, -1]])
    # One row a point: [x', y', 1] @ back = [x, y].
    back = np.linalg.solve(np.column_stack([points + moves, np.ones(3)]), points)
    rows, columns = np.indices((height, width))
    at = np.stack([columns, rows, np.ones_like(rows)], axis=-1) @ back
    return _sampled(image, at[..., 1], at[..., 0], mode="mirror")


def _sampled(
    image: NDArray[np.float64],
    rows: NDArray[Any],
    columns: NDArray[Any],
    *,
    mode: str,
) -> NDArray[np.float64]:
    """image [H, W, C] between its pixels, linearly; mode: of scipy.ndimage, beyond the edges."""
    at = require("scipy.ndimage", extra="train").map_coordinates
    channels = [
        at(channel, (rows, columns), order=1, mode=mode) for channel in image.transpose(2, 0, 1)
    ]
    return np.stack(channels, axis=-1)


def pixelate(pixels: Bytes, severity: int, rng: np.random.Generator) -> Bytes:
    """Brought down by averaging, and back by repeating."""
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[severity - 1]
    pil = require("PIL.Image", extra="openclip")
    height, width = pixels.shape[:2]
    small = pil.fromarray(pixels).resize(
        (int(width * share), int(height * share)), pil.Resampling.BOX
    )
    return np.asarray(small.resize((width, height), pil.Resampling.BOX))


def jpeg_compression(pixels: Bytes, severity: int, rng: np.random.Generator) -> Bytes:
    """A JPEG of low quality."""
    return as_jpeg(pixels, (25, 18, 15, 10, 7)[severity - 1])


def as_jpeg(pixels: Bytes, quality: int) -> Bytes:
    """What is read again of a JPEG of this quality (libjpeg's, 1 to 95)."""
    pil = require("PIL.Image", extra="openclip")
    held = io.BytesIO()
    pil.fromarray(pixels).save(held, "JPEG", quality=quality)
    return np.asarray(pil.open(held))
