"""`robustft train --method NAME`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from robustft.cli import runs
from robustft.cli.options import scalar, to_yaml
from robustft.cli.runs import TrainOptions
from robustft.errors import InputError


def train(options: TrainOptions) -> None:
    """Fine-tune a model, evaluate it, and leave weights, logs and results in a run folder."""
    from robustft.data import load_reference
    from robustft.methods import make_method
    from robustft.train.loop import fit

    folder = options.logs / (options.name or _default_name(options))
    method = make_method(options.method, **method_options(options.option))
    if method.needs_reference and options.reference is None:
        raise InputError(f"--reference: {options.method} needs reference pairs (glyphs, or a CSV)")
    if options.resume is None and (folder / runs.CONFIG).exists():
        raise InputError(
            f"{folder}: a run is there already; continue it with --resume latest, "
            "or choose another --name"
        )
    device = runs.choose_device(options.device)
    config = _train_config(options, device)
    clip = runs.load_model(options, device)
    training = clip.preprocess_train if options.aug == "clip" else clip.preprocess_val
    data = runs.load_split(options, "train", training)
    val = runs.load_split(options, "val", clip.preprocess_val)
    templates = runs.choose_templates(options, data)
    runs.check_sets(options, clip, data.label_space, templates)  # fail before training, not after
    reference = None
    if method.needs_reference:
        assert options.reference is not None
        pairs = load_reference(options.reference, n=options.reference_samples, seed=options.seed)
        print(f"reference pairs: {len(pairs)} of {pairs.available} from {pairs.name}")
        reference = pairs.with_transform(clip.preprocess_val)
    if options.resume is None:
        _write_config(folder, options)
    fit(
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
    runs.evaluate_run(folder, (), options.results_db, device)
    print(f"written: {folder}")


def _train_config(options: TrainOptions, device: str) -> Any:
    from robustft.train.config import TrainConfig

    names = {field.name for field in dataclasses.fields(TrainConfig)}
    values = {name: value for name, value in vars(options).items() if name in names}
    values["device"] = "cpu" if device == "cpu" else "auto"
    return TrainConfig(**values, tensorboard=options.report_to == "tensorboard")


def method_options(pairs: list[str]) -> dict[str, Any]:
    """["rank=4", ...] as a dictionary, the values read as YAML reads them."""
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise InputError(f"--option: got {pair!r}, expected KEY=VALUE")
        found[key.strip().replace("-", "_")] = scalar(value)
    return found


def _default_name(options: TrainOptions) -> str:
    return f"{options.method}-{Path(options.data_location).stem}-{options.seed}"


def _write_config(folder: Path, options: TrainOptions) -> None:
    from robustft.files import write_text

    saved = dataclasses.replace(options, name=folder.name, resume=None)
    write_text(folder / runs.CONFIG, to_yaml(saved))
