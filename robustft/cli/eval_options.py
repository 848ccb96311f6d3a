"""The options of `robustft eval`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from robustft.cli import roots, train_options
from robustft.cli.options import setting
from robustft.cli.suite_options import SuiteOptions


@dataclass(frozen=True)
class EvalOptions(SuiteOptions):
    """Evaluate a fine-tuned or a zero-shot model; one result line a dataset."""

    run: Path | None = setting(
        None, "Run folder whose fine-tuned model to evaluate.", also="--run-dir"
    )
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
    data: str | None = setting(None, roots.DATA_HELP)
    data_location: str | None = setting(
        None,
        "Without --run: the training data that the roles refer to [default: those of the ID set]. "
        "The folder below which registered data sets lie, where some are named.",
    )
    results_db: Path | None = setting(None, "Append result lines to this file.")
