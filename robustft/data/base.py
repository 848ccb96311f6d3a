"""The earlier name of robustft.data.datasets, for code that imports from it."""

from __future__ import annotations

from robustft.data.datasets import ImageDataset, PairDataset
from robustft.data.images import ArrayImages, FileImages, TensorImages

__all__ = ["ArrayImages", "FileImages", "ImageDataset", "PairDataset", "TensorImages"]
