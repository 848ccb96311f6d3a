"""Sequences of images: in memory, in files, or already transformed to tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robustft.errors import InputError
from robustft.extras import require

IMAGE_SUFFIXES = frozenset(
    [".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"]
)


class ArrayImages(Sequence[Any]):
    """Images held in memory as uint8 [N, H, W, 3]; indexing gives a PIL image."""

    def __init__(self, pixels: np.ndarray) -> None:
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
            raise InputError(
                f"images must be uint8 [N, H, W, 3], got {pixels.dtype} {list(pixels.shape)}"
            )
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: Any) -> Any:
        return require("PIL.Image", extra="openclip").fromarray(self.pixels[index])


class FileImages(Sequence[Any]):
    """Image files; indexing reads one as an RGB PIL image, or raises InputError with its path."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        path = self.paths[index]
        image = require("PIL.Image", extra="openclip")
        try:
            with image.open(path) as opened:
                return opened.convert("RGB")
        except FileNotFoundError as error:
            raise InputError(f"image file not found: {path}") from error
        # Pillow reports a damaged file as OSError, SyntaxError or ValueError, by format.
        except (OSError, SyntaxError, ValueError, image.DecompressionBombError) as error:
            raise InputError(f"cannot read the image {path}: {error}") from error


class TensorImages(Sequence[Any]):
    """Images already transformed: float tensors [N, 3, H, W]."""

    def __init__(self, tensors: torch.Tensor) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors)

    def __getitem__(self, index: Any) -> Any:
        return self.tensors[index]
