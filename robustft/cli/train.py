"""`robustft train --method NAME`."""

from __future__ import annotations

import dataclasses
import sys
import warnings
from pathlib import Path
from typing import Any

import typer

from robustft.cli import runs, sets
from robustft.cli.options import read_yaml, resolve, to_yaml
from robustft.cli.runs import TrainOptions
from robustft.errors import InputError, InputWarning, warn
from robustft.train import forewarn, processes


def train(options: TrainOptions) -> None:
    """Fine-tune a model, evaluate it, and leave weights, logs and results in a run folder."""
    from robustft.train import checkpoint
    from robustft.train.interrupt import Interrupted, Terminated
    from robustft.train.loop import RESULT

    options = runs.settled(_located(options))
    folder = options.logs / (options.name or _default_name(options))
    main = processes.rank() == 0
    if not main:  # the main process says it all
        warnings.simplefilter("ignore", InputWarning)
    if main and options.resume is None and (folder / runs.CONFIG).exists():
        raise InputError(
            f"{folder}: a run is there already; continue it with --resume latest, "
            "or choose another --name"
        )
    device = runs.choose_device(options.device)
    trainer, suite = _trainer(options, folder, device)
    evaluated = main and _evaluated(options, folder)
    before = None
    # Of several processes the others would wait for it.
    if suite is not None and not evaluated and processes.world() == 1:
        before = runs.before_training(suite)
    if main and not checkpoint.complete(folder) and not (folder / RESULT).exists():
        _write_config(folder, options)
    try:
        result = trainer.run()
    except (Interrupted, Terminated) as stop:
        if main:
            print(
                f"robustft: stopped at step {stop.step}, saved; continue with: "
                f"{runs.resume_command(folder)}",
                file=sys.stderr,
            )
        raise typer.Exit(stop.status) from None
    processes.part()
    if not main:
        return
    _say_if_unchanged(trainer, result)
    if evaluated:
        print(f"was finished and evaluated before: {folder}")
        return
    runs.compare_run(folder, options.results_db, device, before)
    print(f"written: {folder}")
    if trainer.diverged is not None:
        raise trainer.diverged


def _trainer(options: TrainOptions, folder: Path, device: str) -> tuple[Any, Any]:
    """The trainer and, on the main process, the suite of its test sets."""
    from robustft.data import load_reference
    from robustft.models.clip import WITH_WEIGHTS
    from robustft.train.loop import Trainer

    method = runs.method_of(options)
    if method.needs_reference and options.reference is None:
        raise InputError(f"--reference: {options.method} needs reference pairs (glyphs, or a CSV)")
    config = _train_config(options, device)
    if options.model != "robustft-tiny":  # which is made for rates of its own
        forewarn.learning_rate(method, config.lr)
        if options.pretrained is None and not options.model.startswith(WITH_WEIGHTS):
            warn(
                f"--pretrained: got none, so {options.model} starts from random weights; "
                "expected open_clip's tag (openai, ...) or a checkpoint file"
            )
    # Of several processes each has a device of its own, which the loop knows.
    clip = runs.load_model(options, "cpu" if processes.world() > 1 else device)
    training = clip.preprocess_train if options.aug == "clip" else clip.preprocess_val
    data = runs.load_split(options, "train", training)
    val = runs.load_split(options, "val", clip.preprocess_val)
    templates = runs.choose_templates(options, data)
    suite = None
    if processes.rank() == 0:  # fail before training, not after
        suite = runs.first_suite(options, clip, data.label_space, templates, device)
    reference = None
    if method.needs_reference:
        assert options.reference is not None
        pairs = load_reference(options.reference, n=options.reference_samples, seed=options.seed)
        if processes.rank() == 0:
            print(f"reference pairs: {len(pairs)} of {pairs.available} from {pairs.name}")
        reference = pairs.with_transform(clip.preprocess_val)
    trainer = Trainer(
        method,
        clip,
        data,
        val,
        config,
        folder,
        templates=templates,
        reference=reference,
        resume=options.resume,
    )
    return trainer, suite


def _say_if_unchanged(trainer: Any, result: Any) -> None:
    """Point out a result that predicts on the validation data what the zero-shot model does."""
    from robustft.models import Classifier

    if not trainer.stages or trainer.validation is None:
        return
    clip, device = trainer.clip, next(result.parameters()).device
    before = Classifier.zero_shot(clip, trainer.train.classnames, trainer.templates).to(device)
    some = list(trainer.validation.first(1000))
    if some and forewarn.unchanged(before.eval(), result, some, device):
        warn(
            f"the result predicts the zero-shot model's class on all {sum(map(len, some))} "
            "validation images that were compared: train longer, at a higher rate, or with a "
            "shorter average"
        )


def _train_config(options: TrainOptions, device: str) -> Any:
    from robustft.train.config import TrainConfig

    names = {field.name for field in dataclasses.fields(TrainConfig)}
    values = {name: value for name, value in vars(options).items() if name in names}
    values["device"] = "cpu" if device == "cpu" else "auto"
    values["grad_clip_norm"] = values["grad_clip_norm"] or None
    if runs.averages_itself(options.method):
        values["ema"] = None
    return TrainConfig(**values, tensorboard=options.report_to == "tensorboard")


def _default_name(options: TrainOptions) -> str:
    """METHOD-DATA-SEED; DATA is the shortest name of the data that no run on other data has."""
    names = [
        f"{options.method}-{own}-{options.seed}" for own in sets.own_names(options.data_location)
    ]
    for name in names:
        config = options.logs / name / runs.CONFIG
        if not config.is_file() or read_yaml(config).get("data_location") == options.data_location:
            return name
    return names[-1]


def _located(options: TrainOptions) -> TrainOptions:
    """With absolute paths, so that the run can be opened from any folder."""
    from robustft.data import built_in_names

    def located(spec: str) -> str:
        is_file = spec not in built_in_names() and Path(spec).exists()
        return str(Path(spec).absolute()) if is_file else spec

    def maybe(spec: str | None) -> str | None:
        return None if spec is None else located(spec)

    def placed(texts: list[str]) -> list[str]:
        found = [sets.parse(text) for text in texts]
        return [
            f"{one.name}=" * (one.name is not None)
            + located(one.spec)
            + f":{one.role}" * (one.role is not None)
            for one in found
        ]

    return dataclasses.replace(
        options,
        method_module=maybe(options.method_module),
        model=_model_at(options.model),
        pretrained=maybe(options.pretrained),
        data_location=located(options.data_location),
        template=maybe(options.template),
        reference=maybe(options.reference),
        eval_datasets=placed(options.eval_datasets),
        id=placed(options.id),
        ood=placed(options.ood),
        zero_shot=placed(options.zero_shot),
        logs=options.logs.absolute(),
        results_db=None if options.results_db is None else options.results_db.absolute(),
    )


def _model_at(name: str) -> str:
    """open_clip's name of a model, that of a folder absolute."""
    scheme, colon, folder = name.partition(":")
    return f"{scheme}:{Path(folder).absolute()}" if colon and scheme == "local-dir" else name


def _evaluated(options: TrainOptions, folder: Path) -> bool:
    """Whether the run ended before, and has results on the data that are asked for now."""
    files = (folder / runs.CONFIG, folder / runs.WEIGHTS, folder / runs.RESULTS)
    if not all(file.is_file() for file in files):
        return False
    before = resolve(TrainOptions, folder / runs.CONFIG, {})
    names = ("eval_datasets", "id", "ood", "zero_shot", "results_db")
    return all(getattr(options, name) == getattr(before, name) for name in names)


def _write_config(folder: Path, options: TrainOptions) -> None:
    from robustft.atomic import write_text

    saved = dataclasses.replace(options, logs=folder.parent, name=folder.name, resume=None)
    write_text(folder / runs.CONFIG, to_yaml(saved))
