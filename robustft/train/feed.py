"""What a stage is fed: images, images with captions, or frozen features; and reference pairs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, TypeVar

from torch import nn

from robustft.data.datasets import ImageDataset, PairDataset
from robustft.data.loading import in_memory
from robustft.data.transforms import is_deterministic
from robustft.evaluate.share import ALONE, Share
from robustft.features import FeatureStore, Unit, image_features, text_features, token_rows
from robustft.features.rows import Indexed
from robustft.losses import all_ranks
from robustft.models import Classifier, Clip
from robustft.train.batches import (
    Batch,
    Captions,
    Features,
    References,
    Samples,
    reference_batches,
    stream,
)
from robustft.train.config import Stage, TrainConfig
from robustft.train.method import Method
from robustft.train.order import Order, mix

D = TypeVar("D", ImageDataset, PairDataset)


def with_transform(dataset: D, transform: Any) -> D:
    """The dataset itself if it has a transform or is preloaded, else with `transform`."""
    if in_memory(dataset) is not None or dataset.transform is not None:
        return dataset
    changed: D = dataset.with_transform(transform)
    return changed


def frozen_features(
    classifier: Classifier,
    dataset: ImageDataset,
    transform: Any,
    *,
    device: Any,
    workers: int = 0,
    share: Share = ALONE,
    store: FeatureStore | None = None,
) -> Features:
    """Unit features of every image, with `transform` in place of a random one; of several processes
    each computes a part."""
    if not is_deterministic(dataset.transform):
        dataset = dataset.with_transform(transform)
    found, items = image_features(
        classifier.clip, dataset, store, share=share, device=device, workers=workers
    )
    return Features(Unit(found), dataset.labels[items])


def references(
    clip: Clip,
    dataset: PairDataset,
    *,
    seed: int,
    device: Any,
    kinds: Collection[str] = ("image", "text"),
    workers: int = 0,
    share: Share = ALONE,
    store: FeatureStore | None = None,
) -> References:
    """Reference pairs with the raw features that `clip` gives their images, their texts, or both;
    of several processes each computes a part.

    Images that are augmented have other features each time, and theirs are left to the method.
    """
    how: dict[str, Any] = {"share": share, "device": device}
    tokens = token_rows(clip, dataset, store)
    features: dict[str, Indexed] = {}
    if "text" in kinds:
        features["ref_text_pretrained"] = text_features(clip, dataset, tokens, store, **how)
    if "image" in kinds and is_deterministic(dataset.transform):
        features["ref_image_pretrained"], _ = image_features(
            clip.model, dataset, store, workers=workers, **how
        )
    return References(dataset, tokens, features, seed)


class Feed:
    """The batches of a run's stages, on one of its processes.

    train     ImageDataset with a transform, or preloaded
    reference PairDataset likewise, for methods that need reference pairs
    val       ImageDataset likewise, for methods that need validation batches
    store     where the frozen model's features are kept; None: in memory
    """

    def __init__(
        self,
        method: Method,
        clip: Clip,
        train: ImageDataset,
        reference: PairDataset | None,
        templates: Sequence[Any],
        config: TrainConfig,
        accelerator: Any,
        val: ImageDataset | None = None,
        store: FeatureStore | None = None,
    ) -> None:
        self.store = store
        self.val = val if method.needs_validation else None
        self.method, self.clip, self.train, self.templates = method, clip, train, templates
        self.config, self.accelerator = config, accelerator
        self.share = Share(all_ranks())
        self.pairs: References | None = None
        if reference is not None:
            # In the precision of training: difference vectors are zero before the first step.
            with accelerator.autocast():
                self.pairs = references(
                    clip,
                    reference,
                    seed=config.seed,
                    device=accelerator.device,
                    kinds=method.reference_features,
                    workers=config.workers,
                    share=self.share,
                    store=store,
                )

    def order(self, first_epoch: int) -> Order:
        """Which samples make up which step of a stage whose epochs count from `first_epoch`."""
        config, accelerator = self.config, self.accelerator
        return Order(
            n=len(self.train),
            batch_size=config.batch_size,
            accum=config.accum_freq,
            seed=config.seed,
            drop_last=self.method.contrastive,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            first_epoch=first_epoch,
        )

    def source(self, module: nn.Module, stage: Stage) -> Samples | Features:
        """What `stage` trains on: images, or the features that `module` gives them."""
        if stage.frozen_features:
            with self.accelerator.autocast():
                return frozen_features(
                    self.method.classifier(module),
                    self.train,
                    self.clip.preprocess_val,
                    device=self.accelerator.device,
                    workers=self.config.workers,
                    share=self.share,
                    store=self.store,
                )
        seed, captions = self.config.seed, None
        if self.method.needs_captions:
            captions = Captions(self.train, self.templates, self.clip.tokenizer, seed)
        return Samples(self.train, seed, captions)

    def steps(
        self, source: Samples | Features, order: Order, start: int, stop: int
    ) -> Iterator[list[Batch]]:
        """The batches of each step from `start` up to `stop`, each with its reference pairs."""
        plan = [order.passes(step) for step in range(start, stop)]
        flat = ((epoch, batch) for epoch, batches in order.steps(start, stop) for batch in batches)
        batches = stream(source, flat, self.config.workers)
        paired: Iterator[Batch] | None = None
        if self.pairs is not None:
            # One reference batch for every forward pass since the stage's first step.
            begun = order.passes_before(start)
            numbers = reference_batches(self._pair_order(), begun, begun + sum(plan))
            paired = stream(self.pairs, numbers, self.config.workers)
        held_out = self._validation(start, stop)
        for count in plan:
            step = []
            for _ in range(count):
                batch = next(batches)
                step.append(batch if paired is None else batch | next(paired))
            if held_out is not None:
                step[-1] |= {f"val_{name}": value for name, value in next(held_out).items()}
            yield step

    def _validation(self, start: int, stop: int) -> Iterator[Batch] | None:
        """One batch of the validation split for each step, a process's part of it."""
        if self.val is None:
            return None
        seed, world = mix(self.config.seed, "validation"), self.accelerator.num_processes
        order = Order(
            n=len(self.val),
            batch_size=max(1, min(self.config.batch_size, len(self.val) // world)),
            seed=seed,
            drop_last=True,
            rank=self.accelerator.process_index,
            world=world,
            what="the validation set",
        )
        numbers = reference_batches(order, start, stop)
        return stream(Samples(self.val, seed), numbers, self.config.workers)

    def _pair_order(self) -> Order:
        assert self.pairs is not None
        return Order(
            n=len(self.pairs),
            batch_size=self.method.config.reference_batch_size or self.config.batch_size,
            seed=mix(self.config.seed, "reference"),
            drop_last=True,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
            what="the reference set",
        )
