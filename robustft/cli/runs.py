"""Opening a finished training run: its configuration, its data, and the models before and after."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustft.cli import materials, named, roots
from robustft.cli.options import read_yaml, resolve
from robustft.cli.run_folder import CONFIG, WEIGHTS, resume_command
from robustft.cli.train_options import TrainOptions
from robustft.errors import InputError
from robustft.methods import METHODS

if TYPE_CHECKING:
    from robustft.data.datasets import ImageDataset
    from robustft.models import Classifier, Clip


@dataclass(frozen=True)
class Run:
    """A finished training run, or two models of others (robustft.cli.pairs): the configuration, the
    data, and the models before and after."""

    folder: Path
    options: TrainOptions
    clip: Clip
    train: ImageDataset  # with the evaluation transform
    templates: list[Any]
    zero_shot: Classifier
    fine_tuned: Classifier
    base: str  # what result lines call the fine-tuned model
    own_text: bool  # whether its head comes from its text tower

    @property
    def rebuild(self) -> tuple[Any, list[Any]] | None:
        """What mixed weights re-make their head with, where it comes from the text tower."""
        return (self.clip.tokenizer, self.templates) if self.own_text else None

    @property
    def identity(self) -> dict[str, Any]:
        """The fields of a result line that say which run an ensemble is built on."""
        return {"base": self.base, "seed": self.options.seed}


def open_run(folder: Path, device: str) -> Run:
    """Load a run folder. Errors: InputError when it is not one, or training has not ended."""
    from robustft.models import Classifier, copy_clip, load_classifier

    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder}: no {CONFIG} there, expected the folder of a training run")
    if not (folder / WEIGHTS).is_file():
        raise InputError(
            f"{folder}: no {WEIGHTS} there; training has not ended "
            f"(continue it with: {resume_command(folder)})"
        )
    config = read_yaml(folder / CONFIG)
    if config.get("method_module") and config.get("method") not in METHODS:
        # Not imported unasked: a run folder may be somebody else's.
        raise InputError(
            f"{folder}: its method {config.get('method')!r} comes from a module, expected "
            f"--method-module {config['method_module']}"
        )
    module = str(config.get("data_module") or "")
    if module.endswith((".yaml", ".yml")):  # facts alone: nothing is executed
        roots.bring(module)
    elif (
        module and "@" in (data := str(config.get("data_location"))) and not named.registered(data)
    ):
        # Not imported unasked, as a method's module is not.
        raise InputError(
            f"{folder}: its data set {data!r} comes from a module, expected --data-module {module}"
        )
    options = materials.settled(resolve(TrainOptions, folder / CONFIG, {}, imports=False))
    clip = materials.load_model(options, device)
    train = materials.load_split(options, "train", clip.preprocess_val)
    templates = materials.choose_templates(options, train)
    zero_shot = Classifier.zero_shot(clip, train.classnames, templates)
    fine_tuned = load_classifier(folder / WEIGHTS, copy_clip(clip))
    models = (zero_shot.to(device), fine_tuned.to(device))
    own_text = METHODS[options.method].head_from_text
    return Run(folder, options, clip, train, templates, *models, options.method, own_text)


def check_ensemble(run: Run, ensemble: str) -> None:
    """InputError where the run's method is none for `ensemble`."""
    if ensemble not in METHODS[run.options.method].ensembles:
        suited = ", ".join(name for name, m in METHODS.items() if ensemble in m.ensembles)
        raise InputError(
            f"--run: got a run of {run.options.method}, expected for {ensemble} one of {suited}"
        )


def suits(data: ImageDataset, ensemble: str) -> bool:
    """Whether an ensemble can be made of a run on its kind of data: those of outputs need classes,
    those of weights do not."""
    return bool(data.classnames) or ensemble == "wise-ft"
