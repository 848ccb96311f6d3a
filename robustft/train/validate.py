"""Accuracy on the validation split, as the loop needs it between epochs."""

from __future__ import annotations

from typing import Any

import torch

from robustft.accuracy import correct
from robustft.models import Classifier, evaluating
from robustft.train.batches import in_chunks


@torch.no_grad()
def top1(classifier: Classifier, dataset: Any, *, batch_size: int, device: Any) -> float:
    """Share of `dataset` that `classifier` puts first, in fp32 and evaluation mode."""
    right = 0
    with evaluating(classifier):
        start = 0
        for images in in_chunks(dataset, batch_size):
            labels = dataset.labels[start : start + len(images)]
            right += int(correct(classifier(images.to(device)), labels).sum())
            start += len(images)
    return right / len(dataset)
