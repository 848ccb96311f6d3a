"""Real handwriting: scikit-learn's 1,797 digits as 24 × 24 pictures, and shifted test sets.

Each 8 × 8 scan is brought to 20 × 20 smoothly and drawn as dark ink on a light ground with a
margin of 2 pixels. The split (60 / 20 / 20 %, stratified) depends on the seed alone; every shift
keeps the test digits' labels and order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch

from robustft.data.datasets import ImageDataset, stratified_split
from robustft.data.glyphs import HELD_OUT_FONTS, SIZE, draw_glyphs
from robustft.data.words import COLOUR_NAMES, DIGIT_TEMPLATES, DIGITS, SHIFT_NAMES, TEXTURES
from robustft.data.world import (
    SHIFTS,
    SPLIT,
    apply_matrices,
    colour_pairs,
    jitter,
    palette,
    resolution_matrix,
    textured_ground,
    to_bytes,
)
from robustft.errors import InputError
from robustft.optional import require

_MARGIN = 2
_FRACTIONS = (0.6, 0.2, 0.2)
_SPLITS = ("train", "val", "test")


@lru_cache(maxsize=1)
def scans() -> tuple[np.ndarray, torch.Tensor]:
    """All 1,797 digits: ink coverage float32 [N, 24, 24] in [0, 1], and labels [N]."""
    image = require("PIL.Image", extra="openclip")
    bunch = require("sklearn.datasets", extra="train").load_digits()
    inner = SIZE - 2 * _MARGIN
    coverage = np.zeros((len(bunch.images), SIZE, SIZE), dtype=np.float32)
    for row, scan in enumerate(bunch.images.astype(np.float32) / 16):
        # A ring of paper around the scan, so that strokes at its edge fade out smoothly.
        padded = image.fromarray(np.pad(scan, 1))
        edge = inner / 8
        large = padded.resize(
            (inner + 2 * _MARGIN,) * 2,
            image.Resampling.BICUBIC,
            box=(1 - _MARGIN / edge, 1 - _MARGIN / edge, 9 + _MARGIN / edge, 9 + _MARGIN / edge),
        )
        coverage[row] = np.asarray(large)
    return coverage.clip(0, 1), torch.from_numpy(bunch.target.astype(np.int64))


def _indices(split: str, seed: int) -> np.ndarray:
    if split not in _SPLITS:
        raise InputError(f"split: got {split!r} of 'digits', expected one of {', '.join(_SPLITS)}")
    parts = stratified_split(scans()[1], _FRACTIONS, (SPLIT, seed))
    return parts[_SPLITS.index(split)]


def _dataset(images: np.ndarray, rows: np.ndarray, name: str, split: str) -> ImageDataset:
    return ImageDataset(
        images,
        scans()[1][rows],
        classnames=DIGITS,
        templates=DIGIT_TEMPLATES,
        name=name,
        split=split,
    )


def _paint(
    coverage: np.ndarray, ink: np.ndarray, ground: np.ndarray | torch.Tensor
) -> torch.Tensor:
    """Coverage [N, 24, 24] of `ink` [N, 3] over `ground` ([N, 3] or [N, 3, 24, 24])."""
    below = torch.as_tensor(ground)
    if below.ndim == 2:
        below = below[:, :, None, None]
    return below + torch.from_numpy(coverage)[:, None] * (
        torch.from_numpy(ink)[:, :, None, None] - below
    )


def _named(name: str, count: int) -> np.ndarray:
    return np.tile(palette()[COLOUR_NAMES.index(name)], (count, 1))


def _plain(coverage: np.ndarray) -> torch.Tensor:
    return _paint(coverage, _named("black", len(coverage)), _named("white", len(coverage)))


def digits(split: str, seed: int = 0) -> ImageDataset:
    """The plain handwritten digits of one split: train (1,080 or so), val or test (360 or so)."""
    rows = _indices(split, seed)
    return _dataset(to_bytes(_plain(scans()[0][rows])), rows, "Digits", split)


def _print(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Coverage of the same digits, printed in fonts never pre-trained on."""
    count = len(labels)
    printed = draw_glyphs(
        rng.integers(0, len(HELD_OUT_FONTS), count),
        labels,
        rng,
        fonts=HELD_OUT_FONTS,
        angle=rng.uniform(-10, 10, count),
        thickness=rng.uniform(0.0, 0.5, count),
    )
    return printed.numpy()


def _ink(coverage: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    """Coloured ink on coloured ground."""
    pairs = colour_pairs()[rng.integers(0, len(colour_pairs()), len(coverage))]
    return _paint(
        coverage, jitter(palette()[pairs[:, 0]], rng), jitter(palette()[pairs[:, 1]], rng)
    )


def _texture(coverage: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    """Black ink on a light ground with stripes, checks, dots or clouds."""
    count = len(coverage)
    light = [COLOUR_NAMES.index(name) for name in ("white", "yellow", "orange", "pink", "grey")]
    colours = jitter(palette()[rng.choice(light, count)], rng)
    ground = textured_ground(colours, rng.integers(1, len(TEXTURES), count), rng)
    return _paint(coverage, _named("black", count), ground)


def _inverted(coverage: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    """White ink on black ground."""
    return _paint(coverage, _named("white", len(coverage)), _named("black", len(coverage)))


def _noise(coverage: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    """Gaussian noise of 0.25 on every channel."""
    image = _plain(coverage)
    return image + 0.25 * torch.from_numpy(rng.standard_normal(image.shape, dtype=np.float32))


def _lowres(coverage: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    """Averaged down to 6 × 6 pixels and up again."""
    matrix = torch.from_numpy(resolution_matrix(6))
    return apply_matrices(_plain(coverage), matrix.expand(len(coverage), SIZE, SIZE))


_STYLES: dict[str, Callable[[np.ndarray, np.random.Generator], torch.Tensor]] = {
    "ink": _ink,
    "texture": _texture,
    "inverted": _inverted,
    "noise": _noise,
    "lowres": _lowres,
}


def digit_shift(shift: str, seed: int = 0) -> ImageDataset:
    """One shifted test set; `shift` is one of SHIFT_NAMES: "fonts", a style, or "fonts-<style>"."""
    if shift not in SHIFT_NAMES:
        raise InputError(f"shift: got {shift!r}, expected one of {', '.join(SHIFT_NAMES)}")
    rows = _indices("test", seed)
    coverage, labels = scans()
    coverage, labels = coverage[rows], labels[rows]
    # Every shift has a generator of its own: adding one changes no other.
    key = list(shift.encode())
    rng = np.random.default_rng(np.random.SeedSequence([SHIFTS, seed, *key]))
    if shift.startswith("fonts"):
        coverage = _print(labels.numpy(), rng)
    style = shift.removeprefix("fonts").removeprefix("-")
    image = _STYLES[style](coverage, rng) if style else _plain(coverage)
    return _dataset(to_bytes(image), rows, f"Digits-{shift}", "test")


def digit_shifts(seed: int = 0) -> dict[str, ImageDataset]:
    """Every shift of the test digits, by name: {"fonts": ..., "ink": ..., ...}."""
    return {shift: digit_shift(shift, seed) for shift in SHIFT_NAMES}
