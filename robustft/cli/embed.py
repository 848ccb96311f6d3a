"""`robustft embed`: fill the feature store before the runs that read it, or empty it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from robustft.cli import roots, runs, stores
from robustft.cli.ending import command, end
from robustft.cli.options import setting
from robustft.cli.train_options import PRETRAINED_HELP
from robustft.errors import InputError
from robustft.models.clip import AUTOCAST
from robustft.train import processes

if TYPE_CHECKING:
    from robustft.features import FeatureStore


@dataclass(frozen=True)
class EmbedOptions:
    model: str = setting(
        "ViT-B-16", "open_clip model name, hf:NAME of transformers, or robustft-tiny."
    )
    pretrained: str | None = setting(None, PRETRAINED_HELP)
    reference: str | None = setting(
        None, "Reference pairs, as for train: their image features, text features and tokens."
    )
    reference_samples: int | None = setting(
        None, "How many reference pairs, as for train [default: all; of glyphs 4096]."
    )
    data_module: str | None = roots.data_module()
    data: str | None = setting(None, roots.DATA_HELP)
    data_location: str | None = setting(
        None,
        "Training data, as for train: the image features of its train split; with --data, or a "
        "registered --reference alone, the folder below which registered data sets lie.",
    )
    val_fraction: float = setting(0.1, "Share of train held out for validation if there is no val.")
    seed: int = setting(0, "Seed of the pairs and of the split, as for train.")
    precision: str = setting(
        "fp32", "Autocast of the forward pass, as for train.", choices=tuple(AUTOCAST)
    )
    workers: int = setting(0, "Processes that load images.")
    feature_store: str | None = stores.feature_store()
    clear: bool = setting(False, "Remove what is in the store instead.")
    unused_days: float = setting(0.0, "With --clear: what no run has opened for so many days.")
    device: str = setting("auto", "auto, cpu or cuda.")


def embed(options: EmbedOptions) -> None:
    """Compute the features that DiVE, SnD and linear probes will need, and keep them.

    A run with the same model, data and precision then begins at once. Under torchrun the processes
    share the work.
    """
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

    device = processes.join(runs.choose_device(options.device))
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
