"""One pass of a classifier over a data set: features, logits and labels, in the set's order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from robustft import progress
from robustft.data.images import StoredImages, TensorImages
from robustft.errors import InputError
from robustft.evaluate.share import Share
from robustft.features import image_features
from robustft.models.clip import AUTOCAST, evaluating

if TYPE_CHECKING:
    from robustft.data.datasets import ImageDataset
    from robustft.features import FeatureStore
    from robustft.models.heads import Classifier

Batch = dict[str, Tensor]
_ROWS = 8192  # whose logits are computed at once


@dataclass(frozen=True)
class Outputs:
    """What one model says about one split of one data set. Tensors lie on the CPU.

    features: [N, D] float32, L2-normalised; logits: [N, C] float32; labels: int64 [N];
    class_subset: the class indices that occur in the set, or None for all; merged: classes that the
    set does not tell apart, whose logits hold their maximum in the first's column already;
    groups: int64 [N], -1 for none, or None; index: int64 [N], the rows of the data set, or None for
    all of them.
    """

    features: Tensor
    logits: Tensor
    labels: Tensor
    split: str
    dataset: str
    class_subset: Tensor | None = None
    merged: list[list[int]] | None = None
    groups: Tensor | None = None
    index: Tensor | None = None

    def __post_init__(self) -> None:
        rows = len(self.labels)
        if len(self.features) != rows or len(self.logits) != rows:
            raise InputError(
                f"Outputs of {self.dataset}: got {len(self.features)} rows of features, "
                f"{len(self.logits)} of logits and {rows} labels, expected equal numbers"
            )

    def __len__(self) -> int:
        return len(self.labels)


def collect(
    classifier: Classifier,
    dataset: ImageDataset,
    *,
    batch_size: int = 256,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    workers: int = 0,
    kept: KeptImages | None = None,
    group: Any = None,
) -> Outputs:
    """Run `classifier` in eval mode over `dataset`, whose items must be transformed to tensors.

    Damaged image files have no row in the outputs; a warning counts them.
    The classifier is moved to `device` and its training flags are as before afterwards. workers:
    processes that decode images; kept: where they stay for another model's pass over them. group: a
    torch.distributed ProcessGroup whose ranks share the batches and call together; all get all
    rows, the same as of one process.

    Errors: InputError for an empty data set, items without a tensor image, or an unknown precision.
    """
    (found,) = collect_each(
        [classifier],
        dataset,
        batch_size=batch_size,
        device=device,
        precision=precision,
        workers=workers,
        kept=kept,
        group=group,
    )
    return found


def collect_each(
    classifiers: Sequence[Classifier],
    dataset: ImageDataset,
    *,
    batch_size: int = 256,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    workers: int = 0,
    kept: KeptImages | None = None,
    group: Any = None,
) -> list[Outputs]:
    """As `collect`, of several classifiers in one pass over the images: each is decoded once,
    whatever fits into memory."""
    _check(dataset, precision)
    device, share = torch.device(device), Share(group)
    mine = share.batches(len(dataset), batch_size)
    loader: Iterable[Batch] = DataLoader(
        _Images(dataset),
        batch_sampler=[list(batch) for batch in mine],
        num_workers=workers,
        generator=torch.Generator(),  # or it would draw from the caller's
        pin_memory=device.type == "cuda",
    )
    if kept is not None and not isinstance(dataset.images, TensorImages):
        loader = kept.batches(dataset, loader, sum(map(len, mine)))
    merged = getattr(dataset, "merged", None)  # a data set of the user's own may lack both
    groups = getattr(dataset, "groups", None)
    features: list[list[Tensor]] = [[] for _ in classifiers]
    logits: list[list[Tensor]] = [[] for _ in classifiers]
    facts: list[Tensor] = []  # label and whole
    with ExitStack() as stack:
        for classifier in classifiers:
            stack.enter_context(evaluating(classifier.to(device)))
        stack.enter_context(torch.no_grad())
        stack.enter_context(autocast(device, precision))
        for batch in progress.each(loader, dataset.name, len(mine), "batch"):
            images = batch["image"].to(device, non_blocking=True)
            for number, classifier in enumerate(classifiers):
                found = classifier.features(images)
                features[number].append(found.float().cpu())
                scores = merge_classes(classifier.logits(found), merged)
                logits[number].append(scores.float().cpu())
            facts.append(torch.stack([batch["label"].long(), batch["whole"].long()], dim=1))
    if isinstance(dataset.images, StoredImages):
        share.tell_damaged(dataset)
        dataset.say_damaged()

    def together(parts: list[Tensor]) -> Tensor:
        return share.rows(parts, len(dataset), batch_size)

    labels, whole = together(facts).unbind(dim=1)
    rows = whole.bool()
    _check_readable(dataset, rows)
    return [
        Outputs(
            features=together(features[number])[rows],
            logits=together(logits[number])[rows],
            labels=labels[rows],
            split=dataset.split,
            dataset=dataset.name,
            class_subset=dataset.class_subset,
            merged=merged,
            groups=None if groups is None else groups[rows],
            index=_index(rows),
        )
        for number in range(len(classifiers))
    ]


@torch.no_grad()
def collect_stored(
    classifier: Classifier,
    dataset: ImageDataset,
    store: FeatureStore,
    *,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    workers: int = 0,
    group: Any = None,
) -> Outputs:
    """As `collect`, with features from a store, which keeps what is computed. Images that have no
    identity (generated ones, a transform with random parts) are computed in any case.

    Errors: as for `collect` and `FeatureStore.rows`.
    """
    _check(dataset, precision)
    device = torch.device(device)
    classifier.to(device)
    with autocast(device, precision):
        raw, items = image_features(
            classifier.clip,
            dataset,
            store,
            share=None if group is None else Share(group),
            device=device,
            workers=workers,
        )
    if isinstance(dataset.images, StoredImages):
        dataset.say_damaged()
    whole = items == torch.arange(len(items))
    _check_readable(dataset, whole)
    rows = raw if isinstance(raw, Tensor) else raw.all()  # type: ignore[attr-defined]
    features = F.normalize(rows[whole].float(), dim=-1)
    merged = getattr(dataset, "merged", None)
    parts = [
        merge_classes(classifier.logits(part.to(device)), merged).float().cpu()
        for part in features.split(_ROWS)
    ]
    groups = getattr(dataset, "groups", None)
    return Outputs(
        features=features,
        logits=torch.cat(parts),
        labels=torch.as_tensor(dataset.labels).long()[whole],
        split=dataset.split,
        dataset=dataset.name,
        class_subset=dataset.class_subset,
        merged=merged,
        groups=None if groups is None else torch.as_tensor(groups)[whole],
        index=_index(whole),
    )


def _check(dataset: ImageDataset, precision: str) -> None:
    if precision not in AUTOCAST:
        raise InputError(f"precision: got {precision!r}, expected one of {', '.join(AUTOCAST)}")
    if len(dataset) == 0:
        raise InputError(
            f"dataset: got {dataset.name} ({dataset.split}) without a sample, expected at least one"
        )


def _check_readable(dataset: ImageDataset, rows: Tensor) -> None:
    """rows: which images were read, bool [N]."""
    if not bool(rows.any()):
        raise InputError(
            f"dataset: got {len(dataset)} images of {dataset.name} ({dataset.split}), none of "
            "which can be read, expected at least one"
        )


def _index(rows: Tensor) -> Tensor | None:
    """Which rows are there, int64, of bool [N]; None for all of them."""
    return None if bool(rows.all()) else rows.nonzero().flatten()


def merge_classes(logits: Tensor, merged: list[list[int]] | None) -> Tensor:
    """Logits [N, C] with the maximum over each list of classes in the column of its first one."""
    several = [group for group in merged or () if len(group) > 1]
    if not several:
        return logits
    found = logits.clone()
    for group in several:
        found[:, group[0]] = logits[:, group].amax(dim=1)
    return found


class KeptImages:
    """Transformed images of several datasets, decoded by the first pass and kept for the next ones.

    limit: bytes for all of them; a dataset that would not fit is decoded anew in every pass.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        # The dataset is held beside its batches: an id is taken again once its object is gone.
        self._kept: dict[int, tuple[ImageDataset, list[Batch]]] = {}

    def batches(self, dataset: ImageDataset, loader: Iterable[Batch], rows: int) -> Iterator[Batch]:
        """The batches of `loader`, `rows` images in all, or those that an earlier pass over
        `dataset` left."""
        key = id(dataset)
        if key in self._kept:
            yield from self._kept[key][1]
            return
        room = self.limit - sum(_size(b) for _, held in self._kept.values() for b in held)
        held: list[Batch] = []
        fits: bool | None = None
        for batch in loader:
            if fits is None:
                fits = _size(batch) / len(batch["label"]) * rows <= room
            if fits:
                held.append(batch)
            yield batch
        if fits:
            self._kept[key] = dataset, held


def _size(batch: Batch) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in batch.values())


class _Images(Dataset[dict[str, Any]]):
    """Image and label alone: other fields (captions, indices) need not collate."""

    def __init__(self, dataset: ImageDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.dataset[index]
        if not isinstance(item["image"], Tensor):
            raise InputError(
                f"dataset: got a {type(item['image']).__name__} as image {index} of "
                f"{self.dataset.name}, expected a tensor (see with_transform)"
            )
        # Another image stands in for a damaged one: that row is dropped afterwards.
        whole = item.get("index", index) == index
        return {"image": item["image"], "label": int(item["label"]), "whole": whole}


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """The forward passes' precision, one of `robustft.models.clip.AUTOCAST`, for a `with` block."""
    dtype = AUTOCAST[precision]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
