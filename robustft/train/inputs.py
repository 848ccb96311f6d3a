"""Whether method, data and settings of a run fit together, before it starts."""

from __future__ import annotations

from robustft.data.captioned import CaptionedDataset
from robustft.data.datasets import ImageDataset, PairDataset
from robustft.errors import InputError
from robustft.train.config import TrainConfig
from robustft.train.method import Method


def check(
    method: Method,
    train: ImageDataset,
    val: ImageDataset | None,
    reference: PairDataset | None,
    config: TrainConfig,
) -> None:
    """Errors: InputError when method, data and settings do not fit together."""
    if len(train) == 0:
        raise InputError(f"train: got {train.name!r} without an image, expected at least one")
    for name, data in (("train", train), ("val", val)):
        if data is not None and data.split == "test":
            raise InputError(
                f"{name}: got the test split of {data.name!r}, expected another: it is for the end"
            )
    if val is not None and len(val) == 0:
        raise InputError(f"val: got {val.name!r} without an image, expected at least one, or None")
    if val is not None and list(val.classnames) != list(train.classnames):
        raise InputError(
            f"val: got {len(val.classnames)} class names, expected those of train "
            f"({len(train.classnames)}), in the same order"
        )
    if not train.classnames and not method.takes_pairs:
        raise InputError(
            f"train: got {train.name!r}, captions without classes, expected classes for "
            f"{method.name} (flyp, its kin and r-adapter train on pairs)"
        )
    if not train.classnames and train.captions is None and method.needs_captions:
        raise InputError(
            f"train: got images of {train.name!r}, expected pairs: CaptionedDataset.pairs()"
        )
    if val is not None and not (train.classnames or isinstance(val, CaptionedDataset)):
        raise InputError(f"val: got {val.name!r}, expected a CaptionedDataset, as train has pairs")
    if method.needs_reference and (reference is None or len(reference) == 0):
        raise InputError(f"reference: got none, expected reference pairs for {method.name}")
    if config.ema is not None and hasattr(method.config, "ema"):
        raise InputError(
            f"ema: got {config.ema:g}, expected the method's own option ema: {method.name} "
            "averages what it trains itself"
        )
    if method.needs_validation and val is None:
        raise InputError(f"val: got none, expected a validation set for {method.name}")
    if config.select == "best" and val is None:
        raise InputError('select: got "best" without a validation set, expected both')
    if config.select == "best" and config.val_frequency == 0:
        raise InputError('val_frequency: got 0 with select="best", expected at least 1')
