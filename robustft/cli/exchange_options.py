"""The options of `robustft import` and `robustft export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from robustft.cli import train_options
from robustft.cli.options import setting
from robustft.cli.train_options import PRETRAINED_HELP


@dataclass(frozen=True)
class ImportOptions:
    """Turn another project's checkpoint into a file that robustft and open_clip read."""

    checkpoint: Path | None = setting(
        None, "A file of open_clip, WiSE-FT, FLYP, R-Adapter or OpenAI; nothing in it is run."
    )
    model: str = setting("ViT-B-16", "open_clip model name of its architecture.")
    out: Path | None = setting(
        None,
        "A .safetensors file: the model as open_clip reads it, or, with a head, a classifier; or, "
        "of R-Adapter, a folder for the adapters.",
    )
    classnames: str | None = setting(
        None,
        "Of a head: a text file with one name a line, or a dataset "
        "[default: open_clip's for ImageNet, if there are 1,000].",
    )
    text_from: str | None = setting(
        None, "Weights whose text tower to take where the file has none (WiSE-FT's: openai)."
    )
    alpha: float | None = setting(None, "Of R-Adapter: the strength to merge at [default: 0.5].")


@dataclass(frozen=True)
class ExportOptions:
    """Write a model as open_clip and the Hugging Face hub read it."""

    run: Path | None = setting(None, "Run folder to export.", also="--run-dir")
    method_module: str | None = train_options.method_module()
    model: str | None = setting(None, "Without --run: open_clip model name.")
    pretrained: str | None = setting(None, f"Without --run: {PRETRAINED_HELP}")
    out: Path | None = setting(None, "The .safetensors file or the folder to write.")
    format: str | None = setting(
        None,
        "open_clip: a plain checkpoint; hub: a folder for local-dir: and the Hugging Face hub, "
        "with a model card; adapters: R-Adapter's, as PEFT lays adapters out [default: by --out].",
        choices=("open_clip", "hub", "adapters"),
    )
    alpha: float | None = setting(
        None,
        "Strength of fine-tuning, 0 to 1: of R-Adapter's adapters, or the fine-tuned model's "
        "weight in a mix [default: the run's result].",
    )
    title: str | None = setting(None, "Of the card [default: the folder's name].")
    license: str | None = setting(None, "Of the model, as the hub names it (apache-2.0, other).")
    license_name: str | None = setting(None, "With --license other: its name.")
    license_link: str | None = setting(None, "With --license other: where it stands.")
