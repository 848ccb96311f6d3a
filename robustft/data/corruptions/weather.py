"""Weather: snow, frost, fog, bright light."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robustft.data.corruptions.blur import enlarged, moved
from robustft.data.corruptions.levels import Bytes, eight_bits, unit
from robustft.data.pictures import read_picture
from robustft.errors import InputError

_GREY = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
# The release draws one of the first five of its six photographs of frost.
_FROST = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
_FROST_PACKAGES = ("imagecorruptions", "imagenet_c")  # that bring them


def snow(pixels: Bytes, severity: int, rng: np.random.Generator) -> Bytes:
    """Flakes, which are enlarged noise above a threshold, fall in two opposite directions over an
    image that is made paler."""
    mean, deviation, size, least, radius, spread, kept = (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[severity - 1]
    values = unit(pixels)
    noise = rng.normal(mean, deviation, size=pixels.shape[:2])
    flakes = enlarged(noise[..., None], size)[..., 0]
    flakes[flakes < least] = 0
    falling = unit(moved(eight_bits(flakes), int(radius), spread, rng.uniform(-135, -45)))
    pale = np.maximum(values, 1.5 * (values @ _GREY)[..., None] + 0.5)
    snowed = kept * values + (1 - kept) * pale
    return eight_bits(snowed + (falling + np.rot90(falling, 2))[..., None])


def frost(pixels: Bytes, severity: int, rng: np.random.Generator) -> Bytes:
    """A part of a photograph of frost over the image."""
    of_image, of_frost = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[severity - 1]
    places = photographs()
    place = places[rng.integers(len(places))]
    ice = _photograph(place)
    height, width = pixels.shape[:2]
    if ice.shape[0] <= height or ice.shape[1] <= width:
        raise InputError(f"{place}: got {ice.shape[1]} × {ice.shape[0]} pixels, expected more")
    top, left = rng.integers(ice.shape[0] - height), rng.integers(ice.shape[1] - width)
    over = ice[top : top + height, left : left + width]
    return np.clip(of_image * pixels.astype(float) + of_frost * over, 0, 255).astype(np.uint8)


@cache
def photographs() -> tuple[Path, ...]:
    """The release's photographs of frost, in a package that has them, of which nothing is imported.
    Errors: InputError where there is none."""
    for name in _FROST_PACKAGES:
        found = importlib.util.find_spec(name)
        for place in (found.submodule_search_locations or ()) if found is not None else ():
            files = tuple(Path(place) / "frost" / file for file in _FROST)
            if all(file.is_file() for file in files):
                return files
    raise InputError(
        "frost: its photographs are not here, expected those of the release: pip install --no-deps "
        "imagecorruptions (whose code is not used)"
    )


@cache
def _photograph(place: Path) -> Bytes:
    return np.asarray(read_picture(place))


def fog(pixels: Bytes, severity: int, rng: np.random.Generator) -> Bytes:
    """A fractal cloud is added, and the brightest pixel's value kept."""
    thickness, decay = ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))[severity - 1]
    values = unit(pixels)
    height, width = pixels.shape[:2]
    cloud = plasma(1 << (max(height, width) - 1).bit_length(), decay, rng)[:height, :width]
    brightest = values.max()
    fogged = (values + thickness * cloud[..., None]) * brightest / (brightest + thickness)
    return eight_bits(fogged)


def plasma(side: int, decay: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """A height map [side, side] in [0, 1] by the diamond-square algorithm on a torus; side: a power
    of two. Midpoints depart from the mean of their neighbours by up to w², and w falls from 100 to
    w / decay where the step is halved.
    """
    heights = np.zeros((side, side))
    step, wobble = side, 100.0
    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]

        def between(total: NDArray[np.float64], w: float = wobble) -> NDArray[np.float64]:
            return total / 4 + w * rng.uniform(-w, w, total.shape)

        pairs = corners + np.roll(corners, -1, axis=0)
        heights[half::step, half::step] = between(pairs + np.roll(pairs, -1, axis=1))
        middles = heights[half::step, half::step]
        above, left = np.roll(middles, 1, axis=0), np.roll(middles, 1, axis=1)
        heights[::step, half::step] = between(
            middles + above + corners + np.roll(corners, -1, axis=1)
        )
        heights[half::step, ::step] = between(
            middles + left + corners + np.roll(corners, -1, axis=0)
        )
        step, wobble = half, wobble / decay
    heights -= heights.min()
    return heights / heights.max()


def brightness(pixels: Bytes, severity: int, rng: np.random.Generator) -> Bytes:
    """HSV's value is raised; hue and saturation stay."""
    more = (0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1]
    values = unit(pixels)
    value = values.max(axis=2, keepdims=True)
    raised = np.minimum(value + more, 1)
    # With the same hue and saturation all channels scale with the value; black has neither.
    return eight_bits(np.where(value > 0, values * raised / np.where(value > 0, value, 1), raised))
