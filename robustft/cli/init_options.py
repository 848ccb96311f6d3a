"""The options of `robustft init`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from robustft.cli import roots, train_options
from robustft.cli.method_names import METHOD_NAMES
from robustft.cli.options import setting


@dataclass(frozen=True)
class InitOptions:
    """Write a commented run.yaml for the data that are found, which robustft train --config reads.

    Suggested are a method and a batch size that fit into the memory that is free, the method's
    published settings, and the test sets beside the data with their roles.
    """

    data_location: str | None = setting(
        None,
        "Training data: a folder root/{train,val,test}/<class>/*, a .csv/.tsv, digits, or a folder "
        "in which a table or a registered set lies [default: data].",
    )
    data: str | None = setting(None, roots.DATA_HELP)
    data_module: str | None = roots.data_module()
    model: str = setting(
        "ViT-B-16", "open_clip model name, hf:NAME of transformers, or robustft-tiny."
    )
    pretrained: str | None = setting(
        None, f"{train_options.PRETRAINED_HELP} [default: openai's, if the model has them]"
    )
    method: str | None = setting(
        None,
        "Fine-tuning method [default: flyp, or r-adapter where memory is short].",
        choices=METHOD_NAMES,
    )
    reference: str | None = setting(
        None, "Reference pairs, for methods that need them: as for robustft train."
    )
    out: Path = setting(Path("run.yaml"), "The file to write.")
    force: bool = setting(False, "Write over a file that is there.")
    device: str = setting("auto", "auto, cpu or cuda: whose memory counts.")
