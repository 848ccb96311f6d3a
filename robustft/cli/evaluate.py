"""`robustft eval`: the zero-shot model, or a run's fine-tuned one, on any datasets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from robustft.cli import runs
from robustft.cli.options import setting
from robustft.errors import InputError


@dataclass(frozen=True)
class EvalOptions:
    """Options of `robustft eval`."""

    run: Path | None = setting(None, "Run folder whose fine-tuned model to evaluate.")
    model: str = setting("ViT-B-16", "Without --run: open_clip model name, or robustft-tiny.")
    pretrained: str | None = setting(None, "Without --run: pretrained tag or checkpoint file.")
    eval_datasets: list[str] = setting(
        [], "Datasets: folders, .csv/.tsv files, digits, digits-SHIFT, letters, inks."
    )
    template: str | None = setting(
        None, "Without --run: openai, simple, photo, or a file with one {} a line."
    )
    batch_size: int = setting(256, "Images at a time.")
    seed: int = setting(0, "Seed of the built-in datasets' splits (without --run).")
    results_db: Path | None = setting(None, "Append result lines to this file.")
    device: str = setting("auto", "auto, cpu or cuda.")


def evaluate(options: EvalOptions) -> None:
    """Evaluate a fine-tuned or a zero-shot model; one result line a dataset."""
    device = runs.choose_device(options.device)
    if options.run is not None:
        runs.evaluate_run(options.run, options.eval_datasets, options.results_db, device)
    else:
        _zero_shot(options, device)


def _zero_shot(options: EvalOptions, device: str) -> None:
    from robustft.data import load_dataset
    from robustft.evaluate.suite import Suite
    from robustft.models import Classifier, load_clip, resolve_templates

    if not options.eval_datasets:
        raise InputError("--eval-datasets: got nothing, expected at least one dataset")
    clip = load_clip(options.model, options.pretrained, device=device)
    for spec in options.eval_datasets:
        dataset = load_dataset(spec, "test", seed=options.seed).with_transform(clip.preprocess_val)
        if options.template is not None:
            prompts = resolve_templates(options.template)
        else:
            prompts = dataset.templates or resolve_templates("openai")
        suite = Suite(
            clip,
            dataset.classnames,
            prompts,
            [dataset],
            id_name=dataset.name,
            batch_size=options.batch_size,
            device=device,
        )
        classifier = Classifier.zero_shot(clip, dataset.classnames, prompts).to(device)
        lines = suite.records(
            suite.outputs(classifier),
            method="zero-shot",
            seed=options.seed,
        )
        runs.record(lines, options.results_db)
