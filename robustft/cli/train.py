"""`robustft train --method NAME`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from robustft.cli import runs
from robustft.cli.options import setting, to_yaml
from robustft.errors import InputError

METHODS = ("zero-shot", "linear-probe", "ft", "lp-ft", "flyp", "r-adapter", "dive")


@dataclass(frozen=True)
class TrainOptions:
    """Options of `robustft train`; also the contents of a run folder's config.yaml."""

    method: str = setting("flyp", "Fine-tuning method.", choices=METHODS)
    option: list[str] = setting(
        [], "A setting of the method, as KEY=VALUE (rank=4, lambda_=1000, margin=0.05, ...)."
    )
    model: str = setting("ViT-B-16", "open_clip model name, or robustft-tiny.")
    pretrained: str | None = setting(
        None, "open_clip's pretrained tag (openai, ...), a checkpoint file, or glyphs (tiny model)."
    )
    data_location: str = setting(
        "digits", "Training data: a folder root/{train,val,test}/<class>/*, a .csv/.tsv, or digits."
    )
    val_fraction: float = setting(0.1, "Share of train held out for validation if there is no val.")
    template: str | None = setting(
        None, "Prompts: openai, simple, photo, or a file with one {} a line [default: the data's]."
    )
    reference: str | None = setting(
        None, "DiVE's reference pairs: glyphs, or a .csv/.tsv of path and caption."
    )
    reference_samples: int = setting(4096, "How many reference pairs to use.")
    aug: str = setting(
        "clip", "Training images: CLIP's random crop, or none.", choices=("clip", "none")
    )
    batch_size: int = setting(256, "Images a step.")
    epochs: int = setting(10, "Passes over the training data.")
    lr: float = setting(1e-5, "Peak learning rate.")
    wd: float = setting(0.1, "Weight decay.")
    warmup: int = setting(500, "Steps of linear warm-up.")
    grad_clip_norm: float | None = setting(None, "Clip the gradient's norm to this.")
    accum_freq: int = setting(1, "Batches whose gradients are added up before a step.")
    precision: str = setting("fp32", "Arithmetic.", choices=("fp32", "bf16", "fp16"))
    workers: int = setting(0, "Processes that load images.")
    seed: int = setting(0, "Seed of everything random.")
    val_frequency: int = setting(1, "Validate every so many epochs; 0: only at the end.")
    save_frequency: int = setting(1, "Checkpoint every so many epochs.")
    eval_datasets: list[str] = setting(
        [], "Datasets to evaluate on after training [default: the data's test split]."
    )
    results_db: Path | None = setting(None, "Also append result lines to this file.")
    logs: Path = setting(Path("logs"), "Folder of run folders.")
    name: str | None = setting(None, "Name of the run folder [default: METHOD-DATA-SEED].")
    resume: str | None = setting(None, "latest, or a checkpoint folder of this run.")
    device: str = setting("auto", "auto, cpu or cuda.")


def train(options: TrainOptions) -> None:
    """Fine-tune a model, evaluate it, and leave weights, logs and results in a run folder."""
    from robustft.data import load_dataset, load_reference
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
    load_dataset(options.data_location, "test", seed=options.seed)  # fail before training
    templates = runs.choose_templates(options, data)
    reference = None
    if method.needs_reference:
        assert options.reference is not None
        reference = load_reference(
            options.reference, n=options.reference_samples, seed=options.seed
        ).with_transform(clip.preprocess_val)
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
    _evaluate(folder, options, device)


def _train_config(options: TrainOptions, device: str) -> Any:
    from robustft.train.config import TrainConfig

    names = {field.name for field in dataclasses.fields(TrainConfig)}
    values = {name: value for name, value in vars(options).items() if name in names}
    return TrainConfig(**values | {"device": "cpu" if device == "cpu" else "auto"})


def method_options(pairs: list[str]) -> dict[str, Any]:
    """["rank=4", ...] as a dictionary, the values read as YAML reads them."""
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise InputError(f"--option: got {pair!r}, expected KEY=VALUE")
        found[key.strip().replace("-", "_")] = yaml.safe_load(value)
    return found


def _default_name(options: TrainOptions) -> str:
    return f"{options.method}-{Path(options.data_location).stem}-{options.seed}"


def _write_config(folder: Path, options: TrainOptions) -> None:
    from robustft.files import write_text

    saved = dataclasses.replace(options, name=folder.name, resume=None)
    write_text(folder / runs.CONFIG, to_yaml(saved))


def _evaluate(folder: Path, options: TrainOptions, device: str) -> None:
    run = runs.open_run(folder, device)
    suite = runs.make_suite(run, options.eval_datasets, device)
    identity: dict[str, Any] = {
        "method": options.method,
        "base": None,
        "alpha": None,
        "selected": True,
        "seed": options.seed,
    }
    lines = suite.records(suite.outputs(run.fine_tuned), **identity)
    runs.record(lines, folder / runs.RESULTS, options.results_db)
    print(f"written: {folder}")
