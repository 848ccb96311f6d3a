"""What a stage is fed: images, images with captions, or frozen features; and reference pairs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from robustft.data.transforms import is_deterministic
from robustft.models import Classifier, Clip, evaluating
from robustft.train.batches import (
    Batch,
    Features,
    References,
    in_chunks,
    in_memory,
    reference_batches,
    stream,
    tokenize,
)
from robustft.train.order import Order


def with_transform(dataset: Any, transform: Any) -> Any:
    """The dataset itself if it has a transform or is preloaded, else with `transform`."""
    if in_memory(dataset) is not None or dataset.transform is not None:
        return dataset
    return dataset.with_transform(transform)


@torch.no_grad()
def frozen_features(
    classifier: Classifier, dataset: Any, transform: Any, *, batch_size: int, device: Any
) -> Features:
    """Features of every image, with `transform` in place of a random one."""
    if not is_deterministic(dataset.transform):
        dataset = dataset.with_transform(transform)
    with evaluating(classifier):
        parts = [classifier.features(x.to(device)).cpu() for x in in_chunks(dataset, batch_size)]
    return Features(torch.cat(parts), dataset.labels)


@torch.no_grad()
def references(clip: Clip, dataset: Any, *, batch_size: int, seed: int, device: Any) -> References:
    """Reference pairs with the raw features that `clip` gives them.

    Images that are augmented have other features each time, and theirs are left to the method.
    """
    model: Any = clip.model
    tokens = tokenize(clip.tokenizer, dataset.captions)
    features: dict[str, Tensor] = {}
    with evaluating(model):
        texts = [model.encode_text(t.long().to(device)).float() for t in tokens.split(batch_size)]
        features["ref_text_pretrained"] = torch.cat(texts).cpu()
        if is_deterministic(dataset.transform):
            chunks = in_chunks(dataset, batch_size)
            images = [model.encode_image(chunk.to(device)).float() for chunk in chunks]
            features["ref_image_pretrained"] = torch.cat(images).cpu()
    return References(dataset, tokens, features, seed)


def steps(
    source: Any,
    order: Order,
    start: int,
    stop: int,
    *,
    workers: int,
    pairs: References | None = None,
    pairs_order: Order | None = None,
) -> Iterator[list[Batch]]:
    """The batches of each step from `start` up to `stop`, each with its reference pairs."""
    plan = [order.passes(step) for step in range(start, stop)]
    flat = ((epoch, batch) for epoch, batches in order.steps(start, stop) for batch in batches)
    batches = stream(source, flat, workers)
    reference: Iterator[Batch] | None = None
    if pairs is not None and pairs_order is not None:
        # One reference batch for every forward pass since the stage's first step.
        begun = order.passes_before(start)
        numbers = reference_batches(pairs_order, begun, begun + sum(plan))
        reference = stream(pairs, numbers, workers)
    for count in plan:
        step = []
        for _ in range(count):
            batch = next(batches)
            step.append(batch if reference is None else batch | next(reference))
        yield step
