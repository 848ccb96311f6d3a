"""Images of a data set in their order, from memory or through loading processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


def in_memory(dataset: Any) -> Tensor | None:
    """The images of a preloaded dataset, float [N, 3, H, W], or None."""
    tensors: Tensor | None = getattr(dataset.images, "tensors", None)
    return tensors


class _Pictures(Dataset[Tensor]):
    """The images of a dataset alone."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> Tensor:
        image: Tensor = self.dataset[index]["image"]
        return image


def load_ranges(
    dataset: Any, ranges: Iterable[range], workers: int = 0
) -> Iterator[tuple[range, Tensor]]:
    """(rows, their images [len(rows), 3, H, W]), as the transform gives them.

    `ranges` is taken as loading goes on, some ahead where there are workers.
    """
    images = in_memory(dataset)
    if images is not None:
        for rows in ranges:
            yield rows, images[rows.start : rows.stop]
        return
    begun: deque[range] = deque()

    def batches() -> Iterator[list[int]]:
        for rows in ranges:
            begun.append(rows)
            yield list(rows)

    loader = DataLoader(
        _Pictures(dataset),
        batch_sampler=batches(),
        num_workers=workers,
        generator=torch.Generator(),  # or it would draw from the caller's
        pin_memory=torch.cuda.is_available(),
    )
    for loaded in loader:
        yield begun.popleft(), loaded
