"""The options of `robustft embed`."""

from __future__ import annotations

from dataclasses import dataclass

from robustft.choices import AUTOCAST
from robustft.cli import roots, stores
from robustft.cli.options import setting
from robustft.cli.train_options import PRETRAINED_HELP


@dataclass(frozen=True)
class EmbedOptions:
    """Compute the features that DiVE, SnD and linear probes will need, and keep them.

    A run with the same model, data and precision then begins at once. Under torchrun the processes
    share the work.
    """

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
