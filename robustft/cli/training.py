"""What the options of a training run stand for: its data, its configuration, its Trainer."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustft.cli import materials, named, roots, stores
from robustft.cli.options import method_options, to_yaml
from robustft.cli.run_folder import CONFIG
from robustft.cli.train_options import TrainOptions
from robustft.data.captioned import CaptionedDataset
from robustft.errors import InputError, warn
from robustft.methods import METHODS, Method
from robustft.train import checks, forewarn, trackers

if TYPE_CHECKING:
    from robustft.data.datasets import ImageDataset, PairDataset
    from robustft.models import Clip
    from robustft.train import Trainer
    from robustft.train.config import TrainConfig


@dataclass(frozen=True)
class Inputs:
    """The data of a run: training images (of captioned ones all pairs) with its augmentation,
    validation images, the templates, and reference pairs where its method needs them."""

    train: ImageDataset
    val: ImageDataset
    templates: list[Any]
    reference: PairDataset | None


def check(options: TrainOptions, device: str) -> tuple[Method, TrainConfig]:
    """The method and the configuration of a run, before anything is loaded; warns of settings that
    cannot work. Errors: InputError for settings that do not exist or are out of range."""
    from robustft.models.clip import WITH_WEIGHTS

    method = materials.method_of(options)
    if method.needs_reference and options.reference is None:
        raise InputError(
            f"--reference: got nothing, expected reference pairs for {options.method} (glyphs, or "
            "a CSV)"
        )
    config = _config(options, device)
    trackers.check(config.report_to)
    if options.model != "robustft-tiny":  # which is made for rates of its own
        forewarn.learning_rate(method, config.lr)
        if options.pretrained is None and not options.model.startswith(WITH_WEIGHTS):
            warn(
                f"--pretrained: got none, so {options.model} starts from random weights; "
                "expected open_clip's tag (openai, ...) or a checkpoint file"
            )
    return method, config


def load_inputs(options: TrainOptions, clip: Clip, *, reference: bool) -> Inputs:
    """The data that the options name; reference: whether pairs are needed."""
    training = clip.preprocess_train if options.aug == "clip" else clip.preprocess_val
    train = materials.load_split(options, "train", training)
    if isinstance(train, CaptionedDataset):
        train = train.pairs()
        print(f"training pairs: {len(train):,} captions of {train.name}")
    return Inputs(
        train=train,
        val=materials.load_split(options, "val", clip.preprocess_val),
        templates=materials.choose_templates(options, train),
        reference=_reference(options, clip) if reference else None,
    )


def _reference(options: TrainOptions, clip: Clip) -> PairDataset:
    from robustft.data import load_reference

    assert options.reference is not None
    pairs = load_reference(options.reference, n=options.reference_samples, seed=options.seed)
    print(f"reference pairs: {len(pairs)} of {pairs.available} from {pairs.name}")
    kinds = METHODS[options.method].reference_features
    stores.say(stores.opened(options.feature_store), clip, len(pairs), kinds)
    found: PairDataset = pairs.with_transform(clip.preprocess_val)
    return found


def make_trainer(
    options: TrainOptions,
    folder: Path,
    clip: Clip,
    inputs: Inputs,
    method: Method,
    config: TrainConfig,
    *,
    keep_log: bool = False,
) -> Trainer:
    """The Trainer of a run in `folder`."""
    from robustft.train import Trainer

    return Trainer(
        method,
        clip,
        inputs.train,
        inputs.val,
        config,
        folder,
        templates=inputs.templates,
        reference=inputs.reference,
        resume=options.resume,
        store=stores.opened(options.feature_store),
        keep_log=keep_log,
    )


def _config(options: TrainOptions, device: str) -> TrainConfig:
    from robustft.train.config import TrainConfig

    names = {field.name for field in dataclasses.fields(TrainConfig)}
    values = {name: value for name, value in vars(options).items() if name in names}
    values["device"] = "cpu" if device == "cpu" else "auto"
    values["grad_clip_norm"] = values["grad_clip_norm"] or None
    if materials.averages_itself(options.method):
        values["ema"] = None
    values["report_to"] = tuple(
        name.strip() for name in (options.report_to or "").split(",") if name
    )
    return TrainConfig(**values)


def located(options: TrainOptions) -> TrainOptions:
    """With absolute paths, so that the run can be opened from any folder, and registered data sets
    by name and root."""
    from robustft.data import built_in_names

    home = roots.training_data(options.data, options.data_location) or ""
    options = roots.rooted(options, roots.root_of(home))

    def placed(spec: str) -> str:
        is_file = spec not in built_in_names() and Path(spec).exists()
        return str(Path(spec).absolute()) if is_file else spec

    def maybe(spec: str | None) -> str | None:
        return None if spec is None else placed(spec)

    def test_sets(texts: list[str]) -> list[str]:
        found = [named.parse(text) for text in texts]
        return [one.written(placed(one.spec)) for one in found]

    return dataclasses.replace(
        options,
        method_module=maybe(options.method_module),
        option=[option_at(options.method, pair) for pair in options.option],
        model=_model_at(options.model),
        pretrained=maybe(options.pretrained and _model_at(options.pretrained)),
        data_module=maybe(options.data_module),
        data=None,
        data_location=placed(home),
        template=maybe(options.template),
        reference=maybe(options.reference),
        feature_store=stores.located(options.feature_store),
        eval_datasets=test_sets(options.eval_datasets),
        id=test_sets(options.id),
        ood=test_sets(options.ood),
        zero_shot=test_sets(options.zero_shot),
        logs=options.logs.absolute(),
        results_db=None if options.results_db is None else options.results_db.absolute(),
    )


def option_at(method: str, pair: str) -> str:
    """A method's KEY=VALUE, a file's name absolute and such that it is read as it stands."""
    values = method_options([pair])
    (key, value), *_ = values.items()
    if not isinstance(value, str) or not checks.names_file(METHODS[method].options, key):
        return pair
    path = str(Path(value).absolute())
    plain = re.fullmatch(r"[\w./-]+", path) is not None
    return f"{key}={path if plain else json.dumps(path, ensure_ascii=False)}"


def _model_at(name: str) -> str:
    """open_clip's name of a model, that of a folder absolute."""
    scheme, colon, folder = name.partition(":")
    is_folder = scheme == "local-dir" or (scheme == "hf" and Path(folder).is_dir())
    return f"{scheme}:{Path(folder).absolute()}" if colon and is_folder else name


def write_shots(folder: Path, trainer: Trainer) -> None:
    """Leave the rows that a few-shot run drew in its folder, as JSON."""
    from robustft.atomic import write_json

    drawn = {data.split: data.drawn for data in (trainer.train, trainer.val) if data is not None}
    if any(rows is not None for rows in drawn.values()):
        write_json(folder / "shots.json", drawn)


def write_config(folder: Path, options: TrainOptions) -> None:
    """Leave the options in a run folder, for `open_run` and for --config."""
    from robustft.atomic import write_text

    saved = dataclasses.replace(options, logs=folder.parent, name=folder.name, resume=None)
    write_text(folder / CONFIG, to_yaml(saved))
