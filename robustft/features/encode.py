"""Raw features of a frozen model for images and texts, from a store or in memory.

Both ways compute the same chunks and so give the same bits: on one kind of device, and on a CPU
with one number of threads (with another, torch cuts some sums elsewhere).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from robustft.data.images import StoredImages
from robustft.data.loading import load_ranges
from robustft.errors import InputError
from robustft.features import identity
from robustft.features.rows import ITEMS, VALUES, Indexed
from robustft.features.store import CHUNK, Compute, FeatureStore, Part
from robustft.models import Clip, evaluating
from robustft.progress import each


def image_features(
    model: Any,
    dataset: Any,
    store: FeatureStore | None = None,
    *,
    share: Any = None,
    device: torch.device | str = "cpu",
    workers: int = 0,
) -> tuple[Indexed, Tensor]:
    """Raw features [N, D] float32 of each image, whose transform draws nothing at random, and
    int64 [N]: the item that each is of, itself unless another stands in for a damaged image.

    model: with `encode_image`. The precision is that of the autocast around the call. store: where
    they are kept; None, or images that have no identity: in memory, where a `Share` says what part
    of several processes this one computes (from a store they share what is missing in any case).
    Errors: as `FeatureStore.rows`.
    """
    device = torch.device(device)

    @torch.no_grad()
    def compute(ranges: Iterator[range]) -> Iterator[tuple[range, Part]]:
        with evaluating(model):
            for rows, images in load_ranges(dataset, ranges, workers):
                values = model.encode_image(images.to(device)).float().cpu()
                yield rows, {VALUES: values, ITEMS: _items(dataset, rows)}

    images = None if store is None else identity.of_images(dataset)
    if store is None or images is None:
        values = _in_memory(len(dataset), compute, share)
        if share is not None:
            share.tell_damaged(dataset)
        return values, _items(dataset, range(len(dataset)))
    about = identity.of_model(model, device) | images
    found = store.rows("image", about, len(dataset), compute, data=dataset.name)
    items = found.items()
    if isinstance(dataset.images, StoredImages):
        dataset.images.damaged |= items != torch.arange(len(items))
    return found, items


def text_features(
    clip: Clip,
    dataset: Any,
    tokens: Indexed,
    store: FeatureStore | None = None,
    *,
    share: Any = None,
    device: torch.device | str = "cpu",
) -> Indexed:
    """Raw features [N, D] float32 of the captions of `dataset`, whose tokens [N, L] are given."""
    device = torch.device(device)
    model: Any = clip.model

    @torch.no_grad()
    def compute(ranges: Iterator[range]) -> Iterator[tuple[range, Part]]:
        with evaluating(model):
            for rows in ranges:
                some = tokens[torch.tensor(rows)].long().to(device)
                yield rows, {VALUES: model.encode_text(some).float().cpu()}

    if store is None:
        return _in_memory(len(dataset), compute, share)
    about = identity.of_model(model, device) | _captions(clip, dataset)
    return store.rows("text", about, len(dataset), compute, data=dataset.name)


def token_rows(clip: Clip, dataset: Any, store: FeatureStore | None = None) -> Indexed:
    """Tokens of the captions of `dataset`, int32 (half the memory) [N, L]."""
    if len(dataset) == 0:
        raise InputError("captions: got none to tokenise, expected at least one")

    def compute(ranges: Iterator[range]) -> Iterator[tuple[range, Part]]:
        for rows in ranges:
            tokens = clip.tokenizer(dataset.captions[rows.start : rows.stop])
            yield rows, {VALUES: tokens.to(torch.int32)}

    if store is None:
        return _in_memory(len(dataset), compute)
    about = _captions(clip, dataset)
    return store.rows("token", about, len(dataset), compute, data=dataset.name)


def _captions(clip: Clip, dataset: Any) -> dict[str, Any]:
    captions = dataset.captions
    return {
        "captions": identity.of_texts(captions),
        "tokenizer": identity.of_tokenizer(clip.tokenizer, captions),
    }


def _items(dataset: Any, rows: range) -> Tensor:
    window = slice(rows.start, rows.stop)
    if bool(dataset.damaged[window].any()):
        items: Tensor = dataset.stand_ins()[window]
        return items
    return torch.arange(rows.start, rows.stop)


def _in_memory(count: int, compute: Compute, share: Any = None) -> Tensor:
    if share is not None:
        mine = share.batches(count, CHUNK)
        parts = each(compute(iter(mine)), "features", len(mine), "chunk")
        rows: Tensor = share.rows([p[VALUES] for _, p in parts], count, CHUNK)
        return rows
    ranges = [range(i, min(i + CHUNK, count)) for i in range(0, count, CHUNK)]
    parts = each(compute(iter(ranges)), "features", len(ranges), "chunk")
    return torch.cat([part[VALUES] for _, part in parts])
