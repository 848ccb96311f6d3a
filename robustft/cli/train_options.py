"""The options of `robustft train`, and the help of settings that several verbs have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustft import recipes
from robustft.choices import AUTOCAST
from robustft.cli import roots, stores
from robustft.cli.commas import split_sets
from robustft.cli.method_names import METHOD_NAMES
from robustft.cli.options import setting
from robustft.cli.run_folder import CONFIG, WEIGHTS
from robustft.modules import import_user_module
from robustft.train import processes
from robustft.train.lock import WRITER
from robustft.train.published import PUBLISHED

PRECISIONS = tuple(AUTOCAST)

SETS_HELP = (
    "A test set, as [NAME=]DATASET[:ROLE]; may be repeated, and commas separate several. A role is "
    "id, ood or zero-shot [default: told by its classes; with a run, the run's own sets]."
)
ID_HELP = "The in-distribution test set, as [NAME=]DATASET."
OOD_HELP = "A shifted test set with the training classes; may be repeated."
ZERO_SHOT_HELP = (
    "A test set of other classes, for what fine-tuning makes the model forget; may be repeated."
)


def _by_method(help: str, name: str) -> Any:
    """A setting whose default is the method's own: the help names the methods of each value."""
    values: dict[str, list[str]] = {}
    for method, published in PUBLISHED.items():
        if published.epochs:
            value = getattr(published, name)
            values.setdefault("none" if value is None else f"{value:g}", []).append(method)
    *others, (most, _) = sorted(values.items(), key=lambda item: len(item[1]))
    listed = [most, *(f"{value} for {', '.join(names)}" for value, names in others)]
    return setting(None, f"{help} [default: {'; '.join(listed)}]")


def method_module() -> Any:
    """The setting of every verb that needs to know a run's method."""
    return setting(
        None,
        "A Python file or module that brings a method of one's own.",
        first=lambda spec: import_user_module(str(spec), "--method-module"),
    )


PRETRAINED_HELP = (
    "open_clip's tag (openai, ...), a checkpoint file, a folder of adapters, hf-hub:NAME, "
    "local-dir:FOLDER, or glyphs (tiny model)."
)


@dataclass(frozen=True)
class TrainOptions:
    """Fine-tune a model, evaluate it, and leave weights, logs and results in a run folder."""

    recipe: str | None = setting(
        None,
        "A published run whose settings are the defaults (robustft recipes), or a YAML file of "
        "that form.",
    )
    dry_run: bool = setting(
        False, "Print the plan (data, steps, memory, published figures) and train nothing."
    )
    method_module: str | None = method_module()
    method: str = setting("flyp", "Fine-tuning method.", choices=METHOD_NAMES)
    option: list[str] = setting(
        [],
        "A setting of the method, as KEY=VALUE (rank=4, lambda_=1000, margin=0.05, ...).",
        commas=False,
    )
    model: str = setting(
        "ViT-B-16", "open_clip model name, hf:NAME of transformers, or robustft-tiny."
    )
    pretrained: str | None = setting(None, PRETRAINED_HELP)
    data_module: str | None = roots.data_module()
    data: str | None = setting(None, roots.DATA_HELP)
    data_location: str = setting(
        "digits",
        "Training data: a folder root/{train,val,test}/<class>/*, a .csv/.tsv, or digits; with "
        "--data the folder below which registered data sets lie.",
    )
    shots: int | None = setting(
        None, "So many training images a class, drawn by the seed [default: all]."
    )
    val_fraction: float = setting(0.1, "Share of train held out for validation if there is no val.")
    template: str | None = setting(
        None, "Prompts: openai, simple, photo, or a file with one {} a line [default: the data's]."
    )
    reference: str | None = setting(
        None,
        "Reference pairs for methods that need them: glyphs, a .csv/.tsv of path and caption, or a "
        "registered set.",
    )
    reference_samples: int | None = setting(
        None, "How many reference pairs to use [default: all; of glyphs 4096]."
    )
    aug: str = setting(
        "clip", "Training images: CLIP's random crop, or none.", choices=("clip", "none")
    )
    batch_size: int | None = _by_method("Images a step.", "batch_size")
    epochs: int | None = _by_method("Passes over the training data.", "epochs")
    lr: float | None = _by_method("Peak learning rate.", "lr")
    min_lr: float | None = _by_method("Learning rate at the end.", "min_lr")
    wd: float | None = _by_method("Weight decay.", "wd")
    decay_all: bool = setting(False, "Decay biases, norms and scalars too (FLYP's release does).")
    warmup: int | None = _by_method("Steps of linear warm-up.", "warmup")
    keep_warmup: bool = setting(
        False, "Keep a warm-up longer than the run, instead of a tenth of the run."
    )
    grad_clip_norm: float | None = _by_method(
        "Clip the gradient's norm to this; 0 turns clipping off.", "grad_clip_norm"
    )
    ema: float | None = setting(
        None,
        "The result is an average of the trained weights, with this momentum; r-adapter averages "
        "its adapters in any case, with 0.999 [default: none; r-adapter 0.999].",
    )
    accum_freq: int = setting(1, "Batches whose gradients are added up before a step.")
    grad_cache: int | None = setting(
        None,
        "Rows that pass through a tower at once, for contrastive methods: the loss sees the whole "
        "batch, memory is that of so many rows, and towers run twice.",
    )
    grad_checkpointing: bool = setting(
        False, "Compute the activations of each transformer block twice and keep none of them."
    )
    torchcompile: bool = setting(False, "torch.compile of both towers.")
    precision: str = setting(
        "fp32",
        "Autocast of the forward pass; amp is fp16, amp_bf16 is bf16.",
        choices=PRECISIONS,
    )
    parallel: str = setting(
        "ddp",
        "Of several processes: ddp, each has all weights, or fsdp, they are spread over all.",
        choices=("ddp", "fsdp"),
    )
    workers: int = setting(0, "Processes that load images.")
    seed: int = setting(0, "Seed of everything random.")
    val_frequency: int = setting(1, "Validate every so many epochs; 0: only at the end.")
    select: str = setting(
        "last", "Weights of the last step, or of the best validation.", choices=("last", "best")
    )
    save_frequency: int = setting(1, "Checkpoint every so many epochs; 0: never.")
    save_steps: int = setting(0, "Checkpoint also every so many steps; 0: never.")
    save_minutes: float = setting(10.0, "Checkpoint also after so many minutes; 0: never.")
    keep: int = setting(1, "How many checkpoints are kept.")
    report_to: str | None = setting(
        None,
        "Programs that get the run's settings, curves and results too: tensorboard, wandb, "
        "trackio; commas separate several.",
    )
    suite: list[str] = setting([], roots.SUITE_HELP)
    eval_datasets: list[str] = setting([], SETS_HELP, commas=split_sets)
    id: list[str] = setting([], ID_HELP, commas=split_sets)
    ood: list[str] = setting([], OOD_HELP, commas=split_sets)
    zero_shot: list[str] = setting([], ZERO_SHOT_HELP, commas=split_sets)
    results_db: Path | None = setting(None, "Also append result lines to this file.")
    logs: Path = setting(Path("logs"), "Folder of run folders.", also="--logs-dir")
    name: str | None = setting(None, "Name of the run folder [default: METHOD-DATA-SEED].")
    resume: str | None = setting(None, "latest, or a checkpoint folder of this run.")
    feature_store: str | None = stores.feature_store()
    device: str = setting("auto", "auto, cpu or cuda.")

    @staticmethod
    def defaults_of(values: dict[str, Any]) -> dict[str, Any]:
        """The settings of the recipe that `values` names."""
        name = values.get("recipe")
        return {} if name is None else recipes.load(str(name)).settings_for(processes.world())

    @staticmethod
    def read_from(config: Path) -> dict[str, Any]:
        """A run folder's own file means that folder, wherever it was moved since."""
        folder = config.absolute().parent
        if config.name != CONFIG or not any((folder / x).exists() for x in (WRITER, WEIGHTS)):
            return {}
        return {"logs": folder.parent, "name": folder.name}
