"""The options of `robustft wise-ft`, `ose`, `soup` and `vrf`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from robustft.choices import ALPHAS
from robustft.cli import roots, stores
from robustft.cli.options import setting
from robustft.cli.suite_options import SuiteOptions

_WEIGHTS = "A checkpoint of open_clip, WiSE-FT, FLYP, R-Adapter or robustft, or a tag."


@dataclass(frozen=True)
class EnsembleOptions(SuiteOptions):
    """What every ensemble takes: the models, the test sets, and how to evaluate."""

    data: str | None = setting(None, f"Without --run: the training data. {roots.DATA_HELP}")
    data_location: str | None = setting(
        None,
        "The folder below which registered sets lie [default: the run's]; without --run the "
        "training data: a folder, a .csv/.tsv or digits.",
    )
    model: str | None = setting(
        None, "Without --run: open_clip model name of both models [default: ViT-B-16]."
    )
    out: Path | None = setting(
        None, "Without --run: folder for the results [default: logs/ and the model's name]."
    )
    results_db: Path | None = setting(None, "Also append result lines to this file.")


@dataclass(frozen=True)
class PairOptions(EnsembleOptions):
    """The two models: of a run, or any two files."""

    run: Path | None = setting(None, "Run folder of the fine-tuned model.", also="--run-dir")
    zeroshot: str | None = setting(None, f"Without --run: the model before fine-tuning. {_WEIGHTS}")
    finetuned: str | None = setting(None, f"Without --run: the model after it. {_WEIGHTS}")
    feature_store: str = setting(
        stores.OFF,
        "Folder where the models' features are kept, so that the next command takes seconds; on is "
        "the one that training uses.",
    )


@dataclass(frozen=True)
class WiseFTOptions(PairOptions):
    """Mix zero-shot and fine-tuned model at every α; α is chosen on ID validation accuracy."""

    alpha: list[float] = setting(list(ALPHAS), "Weights of the fine-tuned model to try.")
    space: str = setting(
        "weights",
        "What is mixed: weights (WiSE-FT), outputs (OSE, probabilities) or logits (LSE).",
        choices=("weights", "outputs", "logits"),
    )
    calibrate: bool = setting(
        False, "With --space outputs or logits: temperatures from ID validation."
    )


@dataclass(frozen=True)
class OSEOptions(PairOptions):
    """Mix both models' outputs at every α; α is chosen on ID validation accuracy."""

    alpha: list[float] = setting(list(ALPHAS), "Weights of the fine-tuned model to try.")
    space: str = setting(
        "outputs",
        "What is mixed: outputs (OSE, probabilities) or logits (LSE).",
        choices=("outputs", "logits"),
    )
    calibrate: bool = setting(False, "Temperatures from ID validation.")


@dataclass(frozen=True)
class SoupOptions(EnsembleOptions):
    """Average the weights of several fine-tuned models of one architecture."""

    finetuned: list[str] = setting(
        [], f"The fine-tuned models; repeated, or separated by commas. {_WEIGHTS}"
    )
    greedy: bool = setting(True, "Keep what does not lower ID validation; else the mean of all.")


@dataclass(frozen=True)
class VRFOptions(PairOptions):
    """Weigh the two models sample by sample, by the distance to the zero-shot failures."""

    p: list[float] = setting(
        [0.001],
        "k is this share of the failure set, at least 1; of several, ID validation chooses.",
    )
    k: list[int] = setting([], "k itself, instead; of several, ID validation chooses.")
    a: float | None = setting(
        None,
        "Distance of equal weights; published for ImageNet: 1.5 [default: by ID validation].",
    )
    b: float | None = setting(
        None, "Width of the sigmoid; published for ImageNet: 0.6 [default: by ID validation]."
    )
    omega: str = setting(
        "sigmoid",
        "The weight of a distance d: sigmoid, σ(-(d-a)/b); linear, b(a-d) within 0 and 1; binary, "
        "1 where d < a.",
        choices=("sigmoid", "linear", "binary"),
    )
    space: str = setting(
        "probability",
        "What is mixed: probabilities, or logits.",
        choices=("probability", "logit"),
    )
    bank: str = setting(
        "failures",
        "What distances are taken to: the zero-shot failures, or all training images.",
        choices=("failures", "all"),
    )
    features: str = setting(
        "finetuned", "Whose features distances are taken in.", choices=("finetuned", "zeroshot")
    )
    squared: bool = setting(True, "Squared L2 distance, as published a and b expect.")
    calibrate: bool = setting(True, "Temperatures from ID validation.")
    as_released: bool = setting(
        False,
        "What the authors' code does: k = round(1000·|V|/N), temperatures solved on the reported "
        "ID test set, a=1.5, b=0.6.",
    )
    export: Path | None = setting(
        None, "Also write a folder that runs in PyTorch, and as ONNX, without robustft."
    )
