"""Accuracy or recall on the validation split, as the loop needs it between epochs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from robustft.accuracy import correct
from robustft.data.captioned import CaptionedDataset
from robustft.data.loading import in_memory
from robustft.errors import InputError
from robustft.evaluate.collect import KeptImages, merge_classes
from robustft.evaluate.retrieval import MEAN, retrieve
from robustft.evaluate.share import ALONE, Share
from robustft.losses import all_ranks
from robustft.models import Classifier, evaluating
from robustft.train.batches import in_chunks

_KEEP_BYTES = 2**30


class Validation:
    """A validation set whose images are decoded once, by `workers` processes, and kept for the next
    epoch where they fit into 1 GiB.

    With an `accelerator` forward passes have its precision, and all processes share the batches.
    """

    measure = "top1"

    def __init__(
        self,
        dataset: Any,
        *,
        batch_size: int,
        device: Any,
        workers: int = 0,
        accelerator: Any | None = None,
    ) -> None:
        self.dataset, self.batch_size, self.device = dataset, batch_size, device
        self.workers, self.accelerator = workers, accelerator
        self._share = ALONE if accelerator is None else Share(all_ranks())
        self._kept = KeptImages(_KEEP_BYTES)
        self._features: list[tuple[int, Tensor]] | None = None

    def score(self, classifier: Classifier) -> float:
        """`measure` of a classifier, in [0, 1]."""
        return self.top1(classifier)

    @torch.no_grad()
    def top1(self, classifier: Classifier) -> float:
        """Share of the set that `classifier` puts first, in evaluation mode; rows whose image is
        damaged are left out of it. Errors: InputError where no image is left."""
        tally = torch.zeros(2, dtype=torch.long)  # right, seen
        with evaluating(classifier), self._autocast():
            for start, logits in self._logits(classifier):
                rows = slice(start, start + len(logits))
                scores = merge_classes(logits, getattr(self.dataset, "merged", None))
                hits = correct(scores, self.dataset.labels[rows]).cpu()
                whole = ~self.dataset.damaged[rows]
                tally += torch.stack([hits[whole].sum(), whole.sum()])
        right, seen = self._share.sum(tally).tolist()
        if seen == 0:
            raise InputError(
                f"val: got {len(self.dataset)} images of {self.dataset.name!r}, none of which can "
                "be read, expected at least one"
            )
        return right / seen

    @torch.no_grad()
    def keep_features(self, classifier: Classifier | None) -> None:
        """Until the next call, `top1` takes the features that `classifier` gives now: the image
        encoder stays as it is. None: it moves, and features are computed at each call."""
        self._features = None
        if classifier is not None:
            with evaluating(classifier), self._autocast():
                self._features = [
                    (start, classifier.features(images.to(self.device)).float().cpu())
                    for start, images in self._images()
                ]

    def first(self, count: int) -> Iterator[Tensor]:
        """Batches of images [B, 3, H, W] of this process's share, `count` in all or a few more."""
        seen = 0
        for _, images in self._images():
            yield images
            seen += len(images)
            if seen >= count:
                return

    def _logits(self, classifier: Classifier) -> Iterator[tuple[int, Tensor]]:
        if self._features is not None:
            for start, features in self._features:
                yield start, classifier.logits(features.to(self.device))
        else:
            for start, images in self._images():
                yield start, classifier(images.to(self.device))

    def _images(self) -> Iterator[tuple[int, Tensor]]:
        """(index of the first, images) of this process's batches."""
        chunks = in_chunks(self.dataset, self.batch_size, self._share, workers=self.workers)
        if in_memory(self.dataset) is not None:
            yield from chunks
            return
        batches = (
            {"image": images, "label": torch.arange(start, start + len(images))}
            for start, images in chunks
        )
        mine = sum(map(len, self._share.batches(len(self.dataset), self.batch_size)))
        for batch in self._kept.batches(self.dataset, batches, mine):
            yield int(batch["label"][0]), batch["image"]

    def _autocast(self) -> Any:
        return contextlib.nullcontext() if self.accelerator is None else self.accelerator.autocast()


class RecallValidation(Validation):
    """As `Validation`, of captioned images: by the mean recall. tokenizer: the model's."""

    measure = MEAN

    def __init__(self, dataset: Any, tokenizer: Any, **how: Any) -> None:
        super().__init__(dataset, **how)
        self.tokenizer = tokenizer

    def score(self, classifier: Classifier) -> float:
        with self._autocast():
            return retrieve(
                classifier.clip,
                self.tokenizer,
                self.dataset,
                batch_size=self.batch_size,
                device=self.device,
                workers=self.workers,
                kept=self._kept,
                share=self._share,
            ).mean


def measure_of(dataset: Any) -> str:
    """By what a validation set (or None) is measured."""
    return (RecallValidation if isinstance(dataset, CaptionedDataset) else Validation).measure


def validation(dataset: Any, tokenizer: Any, **how: Any) -> Validation:
    """The validation that suits a data set."""
    if isinstance(dataset, CaptionedDataset):
        return RecallValidation(dataset, tokenizer, **how)
    return Validation(dataset, **how)


def top1(classifier: Classifier, dataset: Any, *, batch_size: int, device: Any) -> float:
    """`Validation.top1` of a data set that is looked at once, in fp32."""
    return Validation(dataset, batch_size=batch_size, device=device).top1(classifier)
