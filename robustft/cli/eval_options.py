"""The options of `robustft eval`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from robustft.cli import roots, train_options
from robustft.cli.commas import split_sets
from robustft.cli.options import setting


@dataclass(frozen=True)
class EvalOptions:
    """Evaluate a fine-tuned or a zero-shot model; one result line a dataset."""

    run: Path | None = setting(
        None, "Run folder whose fine-tuned model to evaluate.", also="--run-dir"
    )
    method_module: str | None = train_options.method_module()
    alpha: list[float] = setting(
        [],
        "With --run: strengths of fine-tuning to evaluate, 0 (zero-shot) to 1: of R-Adapter's "
        "adapters, or the fine-tuned model's weight in a mix. Of several, ID validation chooses.",
    )
    save: Path | None = setting(
        None, "With --alpha: write the classifier, at the chosen one, to this .safetensors file."
    )
    model: str | None = setting(
        None, "Without --run: open_clip model name, hf:NAME, or robustft-tiny [default: ViT-B-16]."
    )
    pretrained: str | None = setting(None, f"Without --run: {train_options.PRETRAINED_HELP}")
    data_module: str | None = roots.data_module()
    data: str | None = setting(None, roots.DATA_HELP)
    data_location: str | None = setting(
        None,
        "Without --run: the training data that the roles refer to [default: those of the ID set]. "
        "The folder below which registered data sets lie, where some are named.",
    )
    suite: list[str] = setting([], roots.SUITE_HELP)
    eval_datasets: list[str] = setting([], train_options.SETS_HELP, commas=split_sets)
    id: list[str] = setting([], train_options.ID_HELP, commas=split_sets)
    ood: list[str] = setting([], train_options.OOD_HELP, commas=split_sets)
    zero_shot: list[str] = setting([], train_options.ZERO_SHOT_HELP, commas=split_sets)
    template: str | None = setting(
        None, "Without --run: openai, simple, photo, or a file with one {} a line."
    )
    batch_size: int | None = setting(None, "Images at a time [default: 256, or the run's].")
    workers: int | None = setting(None, "Processes that load images [default: 0, or the run's].")
    precision: str | None = setting(
        None,
        "Of the forward passes [default: fp32, or the run's].",
        choices=train_options.PRECISIONS,
    )
    seed: int | None = setting(None, "Without --run: seed of the splits [default: 0].")
    results_db: Path | None = setting(None, "Append result lines to this file.")
    device: str = setting("auto", "auto, cpu or cuda.")
