"""What all verbs take that evaluate models: the test sets, and how."""

from __future__ import annotations

from dataclasses import dataclass

from robustft.cli import roots, train_options
from robustft.cli.commas import split_sets
from robustft.cli.options import setting


@dataclass(frozen=True)
class SuiteOptions:
    """The settings of `robustft eval` and of the ensembles alike."""

    suite: list[str] = setting([], roots.SUITE_HELP)
    eval_datasets: list[str] = setting([], train_options.SETS_HELP, commas=split_sets)
    id: list[str] = setting([], train_options.ID_HELP, commas=split_sets)
    ood: list[str] = setting([], train_options.OOD_HELP, commas=split_sets)
    zero_shot: list[str] = setting([], train_options.ZERO_SHOT_HELP, commas=split_sets)
    batch_size: int | None = setting(None, "Images at a time [default: 256, or the run's].")
    workers: int | None = setting(None, "Processes that load images [default: 0, or the run's].")
    precision: str | None = setting(
        None,
        "Of the forward passes [default: fp32, or the run's].",
        choices=train_options.PRECISIONS,
    )
    template: str | None = setting(
        None, "Without --run: openai, simple, photo, or a file with one {} a line."
    )
    seed: int | None = setting(None, "Without --run: seed of the splits [default: 0].")
    method_module: str | None = train_options.method_module()
    data_module: str | None = roots.data_module()
    device: str = setting("auto", "auto, cpu or cuda.")
