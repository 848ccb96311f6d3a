"""`robustft embed`: fill the feature store before the runs that read it, or empty it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch

from robustft.cli import materials, roots, stores
from robustft.cli.embed_options import EmbedOptions
from robustft.cli.ending import command, end
from robustft.errors import InputError
from robustft.models.clip import AUTOCAST
from robustft.train import processes

if TYPE_CHECKING:
    from robustft.features import FeatureStore


def embed(options: EmbedOptions) -> None:
    """Carry out `robustft embed`."""
    store = stores.opened(options.feature_store)
    if store is None:
        raise InputError("--feature-store: got off, expected a folder")
    if options.clear:
        if processes.main():
            freed = store.clear(options.unused_days)
            print(f"{store.root}: {stores.in_words(freed)} removed")
        return
    if options.reference is None and options.data_location is None:
        raise InputError("embed: got no data, expected --reference, --data-location or both")
    _embed(_located(options), store)
    for entry in store.entries():
        print(entry.said())
    end(store.root, next=[_train(options)])


def _train(options: EmbedOptions) -> str:
    """A run that reads what was kept."""
    words = {
        "--method": "linear-probe" if options.reference is None else "dive",
        "--model": options.model,
        "--pretrained": options.pretrained,
        "--reference": options.reference,
        "--data": options.data,
        "--data-location": options.data_location,
        "--feature-store": options.feature_store,
    }
    given = [word for pair in words.items() if pair[1] is not None for word in pair]
    return command("train", *given)


def _located(options: EmbedOptions) -> EmbedOptions:
    """With a root in every registered name."""
    home = roots.training_data(options.data, options.data_location)
    root = roots.root_of(home)
    if root is None and roots.is_root(home):
        home, root = None, home
    return dataclasses.replace(roots.rooted(options, root), data=None, data_location=home)


def _embed(options: EmbedOptions, store: FeatureStore) -> None:
    from robustft.data import load_dataset, load_reference
    from robustft.features import image_features, text_features, token_rows
    from robustft.models import load_clip

    device = processes.join(materials.choose_device(options.device))
    torch.manual_seed(options.seed)  # of the initial weights, where there is no checkpoint
    clip = load_clip(options.model, options.pretrained, device=device)
    dtype = AUTOCAST[options.precision]
    kind = torch.device(device).type
    with torch.autocast(kind, dtype, enabled=dtype is not None):
        if options.reference is not None:
            pairs = load_reference(
                options.reference, n=options.reference_samples, seed=options.seed
            ).with_transform(clip.preprocess_val)
            tokens = token_rows(clip, pairs, store)
            text_features(clip, pairs, tokens, store, device=device)
            image_features(clip.model, pairs, store, device=device, workers=options.workers)
        if options.data_location is not None:
            train = load_dataset(
                options.data_location, "train", seed=options.seed, val_fraction=options.val_fraction
            ).with_transform(clip.preprocess_val)
            image_features(clip.model, train, store, device=device, workers=options.workers)
