"""From indices to batches: straight from memory for preloaded sets, through a DataLoader otherwise.

Every sample is a function of (seed, epoch, index) alone, so both ways and any number of workers
give the same batches, and loading can begin at any step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from robustft.data.captions import CaptionTable
from robustft.data.loading import in_memory, load_ranges
from robustft.errors import InputError
from robustft.evaluate.share import Share
from robustft.features.rows import Indexed, Unit
from robustft.progress import each
from robustft.train.order import Order

Batch = dict[str, Tensor]
Key = tuple[int, int]


class Captions:
    """The tokens of a sample's caption: its own one, or one drawn from the templates.

    Own captions (`dataset.captions`) are tokenised once; drawn ones come from `table`, a function
    of (label, seed).
    """

    def __init__(self, dataset: Any, templates: Any, tokenizer: Any, seed: int) -> None:
        self.seed = seed
        own = getattr(dataset, "captions", None)
        self.tokens = None if own is None else tokenize(tokenizer, own)
        self.labels = dataset.labels
        self.table = CaptionTable(dataset.classnames, templates, tokenizer) if own is None else None

    def draw(self, epoch: int, index: int) -> Tensor:
        """Tokens of sample `index` in `epoch`, int64 [L]."""
        if self.tokens is not None:
            return self.tokens[index].long()
        assert self.table is not None
        return self.table.draw(int(self.labels[index]), seed=(self.seed, epoch, index))


class Samples(Dataset[Batch]):
    """The training set keyed by (epoch, index): image, label and, on demand, text."""

    def __init__(self, dataset: Any, seed: int, captions: Captions | None = None) -> None:
        self.dataset, self.seed, self.captions = dataset, seed, captions

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> Batch:
        epoch, index = key
        sample = self.dataset.sample(index, (self.seed, epoch, index))
        item = {"image": sample["image"], "label": torch.tensor(int(sample["label"]))}
        if self.captions is not None:
            item["text"] = self.captions.draw(epoch, sample["index"])
        return item

    def gather(self, epoch: int, indices: Tensor) -> Batch | None:
        """The whole batch from memory, or None where the images must be loaded one by one."""
        images = in_memory(self.dataset)
        if images is None:
            return None
        batch = {"image": images[indices], "label": self.dataset.labels[indices].long()}
        if self.captions is not None:
            draws = [self.captions.draw(epoch, index) for index in indices.tolist()]
            batch["text"] = torch.stack(draws)
        return batch


class Features(Dataset[Batch]):
    """Unit features computed beforehand in place of images (a stage with frozen features)."""

    def __init__(self, features: Unit, labels: Tensor) -> None:
        self.features, self.labels = features, labels

    def __len__(self) -> int:
        return len(self.features)

    def gather(self, epoch: int, indices: Tensor) -> Batch:
        return {"features": self.features[indices], "label": self.labels[indices].long()}


class References(Dataset[Batch]):
    """Reference pairs: ref_image and ref_text, with frozen features where they were computed."""

    def __init__(
        self, dataset: Any, tokens: Indexed, features: Mapping[str, Indexed], seed: int
    ) -> None:
        self.dataset, self.tokens, self.features, self.seed = dataset, tokens, features, seed

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, key: Key) -> Batch:
        cycle, index = key
        sample = self.dataset.sample(index, (self.seed, cycle, index))
        return {"ref_image": sample["image"]} | self._rest(sample["index"])

    def gather(self, epoch: int, indices: Tensor) -> Batch | None:
        images = in_memory(self.dataset)
        return None if images is None else {"ref_image": images[indices]} | self._rest(indices)

    def _rest(self, index: Any) -> Batch:
        kept = {name: values[index] for name, values in self.features.items()}
        return {"ref_text": self.tokens[index].long()} | kept


def stream(source: Any, batches: Iterable[tuple[int, Tensor]], workers: int) -> Iterator[Batch]:
    """The batches of `source` at (epoch, indices), in order."""
    batches = iter(batches)
    first = next(batches, None)
    if first is None:
        return
    whole = source.gather(*first)
    if whole is not None:
        yield whole
        for epoch, indices in batches:
            yield source.gather(epoch, indices)
        return

    def keys() -> Iterator[list[Key]]:
        yield [(first[0], index) for index in first[1].tolist()]
        for epoch, indices in batches:
            yield [(epoch, index) for index in indices.tolist()]

    # One loader for all epochs: its workers start once and stay.
    yield from DataLoader(
        source,
        batch_sampler=keys(),
        num_workers=workers,
        generator=torch.Generator(),  # or it would draw from the caller's
        pin_memory=torch.cuda.is_available(),
    )


def reference_batches(order: Order, start: int, stop: int) -> Iterator[tuple[int, Tensor]]:
    """Reference batches numbered `start` ... `stop` - 1; the set is dealt anew when used up."""
    now, permuted = -1, torch.empty(0)
    for number in range(start, stop):
        cycle, place = divmod(number, order.batches_per_epoch)
        if cycle != now:
            now, permuted = cycle, order.of_epoch(cycle)
        yield cycle, order.batch(cycle, place, permuted)


def in_chunks(
    dataset: Any, size: int, share: Share, *, workers: int = 0
) -> Iterator[tuple[int, Tensor]]:
    """(index of the first, images [<= size, 3, H, W]) of this process's share of `dataset`, in
    order, unaugmented; loaded by `workers` processes."""
    mine = share.batches(len(dataset), size)
    loading = load_ranges(dataset, mine, workers)
    for chunk, loaded in each(loading, "validation", len(mine), "batch"):
        yield chunk.start, loaded


def tokenize(tokenizer: Callable[[list[str]], Tensor], texts: list[str]) -> Tensor:
    """Tokens of many texts, int32 to halve the memory, [n, L]."""
    if not texts:
        raise InputError("captions: got none to tokenise, expected at least one")
    parts = [tokenizer(texts[i : i + 4096]) for i in range(0, len(texts), 4096)]
    return torch.cat(parts).to(torch.int32)
