"""`robustft eval`: the zero-shot model, or a run's fine-tuned one, on any datasets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustft.cli import runs, sets
from robustft.cli.options import flag, setting
from robustft.errors import InputError


@dataclass(frozen=True)
class EvalOptions:
    """Options of `robustft eval`."""

    run: Path | None = setting(
        None, "Run folder whose fine-tuned model to evaluate.", also="--run-dir"
    )
    model: str | None = setting(
        None, "Without --run: open_clip model name, or robustft-tiny [default: ViT-B-16]."
    )
    pretrained: str | None = setting(None, "Without --run: pretrained tag or checkpoint file.")
    data_location: str | None = setting(
        None,
        "Without --run: the training data that the roles refer to [default: those of the ID set].",
    )
    eval_datasets: list[str] = setting([], runs.SETS_HELP)
    id: list[str] = setting([], runs.ID_HELP)
    ood: list[str] = setting([], runs.OOD_HELP)
    zero_shot: list[str] = setting([], runs.ZERO_SHOT_HELP)
    template: str | None = setting(
        None, "Without --run: openai, simple, photo, or a file with one {} a line."
    )
    batch_size: int | None = setting(None, "Images at a time [default: 256, or the run's].")
    workers: int | None = setting(None, "Processes that load images [default: 0, or the run's].")
    precision: str | None = setting(
        None,
        "Of the forward passes [default: fp32, or the run's].",
        choices=runs.PRECISIONS,
    )
    seed: int | None = setting(None, "Without --run: seed of the splits [default: 0].")
    results_db: Path | None = setting(None, "Append result lines to this file.")
    device: str = setting("auto", "auto, cpu or cuda.")


_WITHOUT_RUN = ("model", "pretrained", "data_location", "template", "seed")


def evaluate(options: EvalOptions) -> None:
    """Evaluate a fine-tuned or a zero-shot model; one result line a dataset."""
    asked = sets.asked_for(options.eval_datasets, options.id, options.ood, options.zero_shot)
    loading = {
        key: value
        for key in ("batch_size", "workers", "precision")
        if (value := getattr(options, key)) is not None
    }
    if options.run is None:
        _zero_shot(options, asked, loading)
        return
    for name in _WITHOUT_RUN:
        if (value := getattr(options, name)) is not None:
            raise InputError(
                f"{flag(name)}: got {value!r} beside --run, expected one of them: the run has its "
                "own (leave out --run for the zero-shot model)"
            )
    device = runs.choose_device(options.device)
    runs.evaluate_run(options.run, asked, options.results_db, device, **loading)


def _zero_shot(options: EvalOptions, asked: list[sets.Asked], loading: dict[str, Any]) -> None:
    from robustft.data import load_dataset
    from robustft.models import Classifier, load_clip, resolve_templates

    if not asked:
        raise InputError("--eval-datasets: got nothing, expected at least one dataset")
    device, seed = runs.choose_device(options.device), options.seed or 0
    home = options.data_location or sets.find_home(asked, seed=seed)
    split = "train" if options.data_location or sets.has_training(home, seed) else "test"
    reference = load_dataset(home, split, seed=seed)
    clip = load_clip(options.model or "ViT-B-16", options.pretrained, device=device)
    prompts = resolve_templates(options.template or reference.templates or "openai")
    suite = runs.build_suite(
        clip,
        reference.label_space,
        prompts,
        sets.load_sets(asked, home if split == "train" else "", clip.preprocess_val, seed=seed),
        options.results_db,
        device=device,
        **loading,
    )
    classifier = Classifier.zero_shot(clip, reference.classnames, prompts).to(device)
    lines = suite.records(suite.outputs(classifier), method="zero-shot", seed=seed)
    runs.record(lines, options.results_db)
