"""A few images of each class, drawn by a seed."""

from __future__ import annotations

import numpy as np

from robustft.data.datasets import ImageDataset
from robustft.errors import InputError

_DRAWN = 13  # first word of the seed that draws them
_VAL_SHOTS = 4  # a validation split gets no more a class, as in CoOp (arXiv 2109.01134)


def few_shot(dataset: ImageDataset, shots: int, seed: int) -> ImageDataset:
    """`shots` images a class of a training split, at most 4 of a validation split; classes with
    fewer keep all. The rows, in ascending order, are `drawn` of the result.

    A pure function of (labels, split, shots, seed). Errors: InputError for shots below 1.
    """
    if shots < 1:
        raise InputError(f"shots: got {shots}, expected at least 1")
    if not dataset.classnames:
        raise InputError(f"shots: got {shots} for {dataset.name}, expected images with classes")
    most = min(shots, _VAL_SHOTS) if dataset.split == "val" else shots
    words = (_DRAWN, ("train", "val", "test").index(dataset.split), seed)
    rng = np.random.default_rng(np.random.SeedSequence(words))
    labels = dataset.labels.numpy()
    parts = [rng.permutation(np.flatnonzero(labels == label))[:most] for label in np.unique(labels)]
    rows = np.sort(np.concatenate(parts)).tolist()
    few = dataset.subset(rows, split=dataset.split)
    few.drawn = rows
    return few
