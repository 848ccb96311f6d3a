"""What a run is made of, by its options: settings, method, device, model, data, templates."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch

from robustft.cli.options import method_options
from robustft.cli.train_options import TrainOptions
from robustft.errors import InputError
from robustft.methods import METHODS, Method, make_method
from robustft.optional import require

if TYPE_CHECKING:
    from robustft.data.datasets import ImageDataset
    from robustft.models import Clip


def settled(options: TrainOptions) -> TrainOptions:
    """With the method's published settings where none were given."""
    published = METHODS[options.method].published
    values = {
        name: value
        for name, value in dataclasses.asdict(published).items()
        if getattr(options, name) is None
    }
    lr = options.lr or published.lr
    if "min_lr" in values:
        values["min_lr"] = min(values["min_lr"], lr)
    if "epochs" in values:
        values["epochs"] = max(values["epochs"], 1)
    return dataclasses.replace(options, **values)


def method_of(options: TrainOptions) -> Method:
    """The method with its settings. Errors: InputError for one that it does not have."""
    given = method_options(options.option)
    if options.ema is not None and averages_itself(options.method):
        if "ema" in given:
            raise InputError("--ema: got it beside --option ema, expected one of them")
        given["ema"] = options.ema
    return make_method(options.method, **given)


def averages_itself(method: str) -> bool:
    """Whether the method has a moving average of its own, whose momentum --ema is."""
    return "ema" in {field.name for field in dataclasses.fields(METHODS[method].options)}


def choose_device(name: str) -> str:
    """ "auto" is CUDA where there is one, else the CPU."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device: got {name!r}, expected auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"--device: got {name!r}, expected auto or cpu: torch finds no CUDA device"
        )
    return name


def load_model(options: TrainOptions, device: str) -> Clip:
    from robustft.models import load_clip

    require("open_clip", extra="openclip")
    torch.manual_seed(options.seed)  # of the initial weights, where there is no checkpoint
    return load_clip(options.model, options.pretrained, device=device)


def load_split(options: TrainOptions, split: str, transform: Any) -> ImageDataset:
    """A split of the training data, with a transform. The validation split is carved from train
    by the run's seed where the data has none."""
    from robustft.data import load_dataset
    from robustft.data.few_shot import few_shot

    dataset = load_dataset(
        options.data_location, split, seed=options.seed, val_fraction=options.val_fraction
    )
    if options.shots is not None and split != "test":
        dataset = few_shot(dataset, options.shots, options.seed)
    return dataset.with_transform(transform)


def choose_templates(options: TrainOptions, dataset: ImageDataset) -> list[Any]:
    """The templates named by --template, else the dataset's own, else OpenAI's eighty."""
    from robustft.models import resolve_templates

    if options.template is not None:
        return resolve_templates(options.template)
    return dataset.templates or resolve_templates("openai")
