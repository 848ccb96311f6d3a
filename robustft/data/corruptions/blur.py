"""Blur: out of focus, through frosted glass, of a moving camera, of one that comes closer."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from robustft.data.corruptions.levels import Bytes, eight_bits, unit
from robustft.optional import require

Values = NDArray[np.float64]


def defocus_blur(pixels: Bytes, severity: int, rng: np.random.Generator) -> Bytes:
    """Convolved with a disk; the image goes on beyond its edges as in a mirror, edges once."""
    kernel = disk(*((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[severity - 1])
    reach = len(kernel) // 2
    wide = np.pad(unit(pixels), ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    convolve = require("scipy.signal", extra="train").fftconvolve
    return eight_bits(convolve(wide, kernel[..., None], mode="valid", axes=(0, 1)))


def disk(radius: int, deviation: float) -> Values:
    """A disk of weight 1, its edge softened by a Gaussian of 3 pixels (5 above a radius of 8)."""
    reach, taps = (8, 3) if radius <= 8 else (radius, 5)
    place = np.arange(-reach, reach + 1)
    sharp = (place[:, None] ** 2 + place**2 <= radius**2).astype(np.float64)
    bell = np.exp(-0.5 * ((np.arange(taps) - taps // 2) / deviation) ** 2)
    smooth = require("scipy.ndimage", extra="train").correlate1d
    rows: Values = smooth(sharp / sharp.sum(), bell / bell.sum(), axis=0, mode="mirror")
    found: Values = smooth(rows, bell / bell.sum(), axis=1, mode="mirror")
    return found


def glass_blur(pixels: Bytes, severity: int, rng: np.random.Generator) -> Bytes:
    """Blurred, pixels taken from near by, and blurred again."""
    deviation, reach, rounds = (
        (0.7, 1, 2),
        (0.9, 2, 1),
        (1.0, 2, 3),
        (1.1, 3, 2),
        (1.5, 4, 2),
    )[severity - 1]
    found = eight_bits(gaussian(unit(pixels), deviation))
    for _ in range(rounds):
        height, width = found.shape[0] - 2 * reach, found.shape[1] - 2 * reach
        moves = rng.integers(-reach, reach, size=(height, width, 2))
        found = taken_from_near(found, moves, reach)
    return eight_bits(gaussian(unit(found), deviation))


def gaussian(values: Values, deviation: float) -> Values:
    """Along both sides, the edges' values going on beyond them; cut off at 4 deviations."""
    blur = require("scipy.ndimage", extra="train").gaussian_filter
    found: Values = blur(values, (deviation, deviation, 0), mode="nearest", truncate=4.0)
    return found


def taken_from_near(pixels: Bytes, moves: NDArray[np.int64], reach: int) -> Bytes:
    """Each pixel, one after the other from the lower right to the upper left, becomes what stands
    at its move (down, right) by then; the first reach + 1 rows and columns and the last reach − 1
    stay.

    moves: in [-reach, reach), of the pixels from (reach + 1, reach + 1) on. The release means to
    swap two pixels, but writes the first over the second before that is read; its images are these.
    """
    height, width = pixels.shape[:2]
    rows = np.arange(reach + 1, reach + 1 + moves.shape[0])
    columns = np.arange(reach + 1, reach + 1 + moves.shape[1])
    place = (rows[:, None] * width + columns).ravel()
    source = place + (moves[..., 0] * width + moves[..., 1]).ravel()
    # Whose turn came before (those behind it in reading order, within the frame) has its new value.
    goes_on = np.zeros(height * width, dtype=bool)
    goes_on[place] = True
    origin = np.arange(height * width)
    origin[place] = source
    later = goes_on[origin] & (origin > np.arange(height * width))
    step = np.where(later, origin, np.arange(height * width))
    while True:  # a chain of n such pixels is followed in log2 n rounds
        further = step[step]
        if np.array_equal(further, step):
            break
        step = further
    found: Bytes = pixels.reshape(height * width, -1)[origin[step]].reshape(pixels.shape)
    return found


def motion_blur(pixels: Bytes, severity: int, rng: np.random.Generator) -> Bytes:
    """As a camera that moves on a line, by up to 45° to either side."""
    radius, deviation = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[severity - 1]
    return moved(pixels, radius, deviation, rng.uniform(-45, 45))


def moved(pixels: Bytes, radius: int, deviation: float, degrees: float) -> Bytes:
    """ImageMagick's motion blur (MotionBlurImage), which the release calls: 2 · radius + 1 pixels
    on a line under half a Gaussian, the edges' values going on beyond them. It computes in 16 bits,
    of which a PNG of 8 bits has the upper ones."""
    count = 2 * radius + 1
    weights = np.exp(-0.5 * (np.arange(count) / deviation) ** 2)
    weights /= weights.sum()
    angle = math.radians(degrees)
    wide = np.pad(pixels, ((count, count), (count, count)) + ((0, 0),) * (pixels.ndim - 2), "edge")
    total = np.zeros(pixels.shape)
    for i, weight in enumerate(weights):
        down = count + math.ceil(i * math.sin(angle) - 0.5)
        right = count + math.ceil(i * math.cos(angle) - 0.5)
        total += weight * wide[down : down + pixels.shape[0], right : right + pixels.shape[1]]
    return (np.rint(total * 257) // 257).astype(np.uint8)


def zoom_blur(pixels: Bytes, severity: int, rng: np.random.Generator) -> Bytes:
    """The mean of an image and its enlargements."""
    most, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[
        severity - 1
    ]
    factors = np.arange(
        1, most, step
    )  # rounding makes them twelve at severity 1, as in the release
    values = unit(pixels)
    total = values + sum(enlarged(values, float(factor)) for factor in factors)
    return eight_bits(total / (len(factors) + 1))


def enlarged(values: Values, factor: float) -> Values:
    """The middle of a square image [S, S, C] at `factor` times its size, linearly interpolated."""
    side = len(values)
    kept = math.ceil(side / factor)
    start = (side - kept) // 2
    middle = values[start : start + kept, start : start + kept]
    zoomed = require("scipy.ndimage", extra="train").zoom(middle, (factor, factor, 1), order=1)
    trim = (len(zoomed) - side) // 2
    found: Values = zoomed[trim : trim + side, trim : trim + side]
    return found
