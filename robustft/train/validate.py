"""Accuracy on the validation split, as the loop needs it between epochs."""

from __future__ import annotations

from typing import Any

import torch

from robustft.accuracy import correct
from robustft.errors import InputError
from robustft.models import Classifier, evaluating
from robustft.train.batches import in_chunks


@torch.no_grad()
def top1(
    classifier: Classifier,
    dataset: Any,
    *,
    batch_size: int,
    device: Any,
    accelerator: Any | None = None,
) -> float:
    """Share of `dataset` that `classifier` puts first, in fp32 and evaluation mode.

    Rows whose image is damaged are left out of the share. With an `accelerator` of several
    processes each takes its share of the batches.
    Errors: InputError where no image is left.
    """
    rank, world = 0, 1
    if accelerator is not None:
        rank, world = accelerator.process_index, accelerator.num_processes
    tally = torch.zeros(2, dtype=torch.long)  # right, seen
    with evaluating(classifier):
        for start, images in in_chunks(dataset, batch_size, rank=rank, world=world):
            labels = dataset.labels[start : start + len(images)]
            hits = correct(classifier(images.to(device)), labels).cpu()
            whole = ~dataset.damaged[start : start + len(images)]
            tally += torch.stack([hits[whole].sum(), whole.sum()])
    if accelerator is not None and world > 1:
        tally = accelerator.reduce(tally.to(device), "sum")
    right, seen = tally.tolist()
    if seen == 0:
        raise InputError(
            f"val: got {len(dataset)} images of {dataset.name!r}, none of which can be read, "
            "expected at least one"
        )
    return right / seen
