"""Two models of anybody's for the ensembles: `--zeroshot`, `--finetuned`, `--model`.

Each is anything that `--pretrained` takes. A classifier's file brings its head; for any other model
a head is made from its text tower, the class names and the templates.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustft.cli import materials, named, roots, runs, sets
from robustft.cli.train_options import TrainOptions
from robustft.errors import InputError
from robustft.models.clip import Clip

if TYPE_CHECKING:
    from robustft.data.datasets import ImageDataset
    from robustft.models import Classifier


def open_pair(options: Any, device: str) -> runs.Run:
    """The two models that a verb's options name, with the data that they are for.

    Errors: InputError for a flag that is missing, or a head that does not fit the data's classes.
    """
    if options.zeroshot is None or options.finetuned is None:
        missing = "--zeroshot" if options.zeroshot is None else "--finetuned"
        raise InputError(f"{missing}: got nothing, expected the other model's weights, too")
    o, data, templates, clip = _begin(options, options.finetuned)
    after, own_text = _classifier(clip, data, templates, "--finetuned")
    first = load_model(options, options.zeroshot)
    before, _ = _classifier(first, data, templates, "--zeroshot")
    clip = dataclasses.replace(clip, has_text=clip.has_text and first.has_text)
    name = name_of(options.finetuned)
    folder = options.out or Path("logs") / name
    models = (before.to(device), after.to(device))
    return runs.Run(folder, o, clip, data, templates, *models, name, own_text)


def open_several(options: Any, device: str) -> tuple[runs.Run, list[Classifier]]:
    """Several fine-tuned models, and the last of them as a run (of which it is both ends)."""
    if not options.finetuned:
        raise InputError("--finetuned: got nothing, expected the weights of several models")
    o, data, templates, clip = _begin(options, options.finetuned[0])
    found: list[Classifier] = []
    own: list[bool] = []
    for source in options.finetuned:
        clip = clip if not found else load_model(options, source)
        classifier, own_text = _classifier(clip, data, templates, "--finetuned")
        found.append(classifier.to(device))
        own.append(own_text)
    folder = options.out or Path("logs") / f"{name_of(options.finetuned[0])}-soup"
    last = found[-1]
    run = runs.Run(folder, o, clip, data, templates, last, last, "soup", all(own))
    return run, found


def _begin(options: Any, source: str) -> tuple[TrainOptions, ImageDataset, list[Any], Clip]:
    """What both models share: settings, training data, templates; and the first model."""
    home = roots.training_data(options.data, options.data_location)
    if home is None:
        raise InputError(
            "--data-location: got nothing, expected the training data of the fine-tuned model"
        )
    o = materials.settled(
        TrainOptions(
            method="ft",
            model=options.model or "ViT-B-16",
            data_location=home,
            template=options.template,
            seed=options.seed or 0,
            batch_size=options.batch_size or 256,
            workers=options.workers or 0,
            precision=options.precision or "fp32",
        )
    )
    clip = load_model(options, source)
    data = materials.load_split(o, "train", clip.preprocess_val)
    return o, data, materials.choose_templates(o, data), clip


def load_model(options: Any, source: str) -> Clip:
    """One of the two models, with or without a text tower."""
    from robustft.models import load_clip

    return load_clip(options.model or "ViT-B-16", source, image_only=True)


def name_of(source: str) -> str:
    """What a model is called in result lines and folders: its file's or tag's name."""
    name = Path(source).stem if Path(source).is_file() else source
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name).strip("-.") or "model"


def _classifier(
    clip: Clip, data: ImageDataset, templates: list[Any], flag: str
) -> tuple[Classifier, bool]:
    """A model with a head for the data's classes, and whether its text tower gave it."""
    from robustft.models import Classifier

    try:
        found = Classifier.of(clip, list(data.classnames), templates)
    except InputError as error:
        raise InputError(f"{flag}: {error}") from error
    if clip.head is not None and not clip.head.classnames:
        print(f"{clip.pretrained}: its head does not name its classes; taken in the data's order")
    return found, clip.head is None


def asked_sets(options: Any, run: runs.Run) -> list[named.Asked]:
    """The test sets that the options name; of models without a text tower, the data's own."""
    asked = named.asked_for(options.eval_datasets, options.id, options.ood, options.zero_shot)
    if not asked and not run.clip.has_text:
        own = sets.default_sets(run.options.data_location, [], seed=run.options.seed)
        asked = [one for one, _ in own if one.role == "id"]
    return asked


def check_text(run: runs.Run, suite: Any) -> None:
    """InputError for a test set of other classes, where a model has no text tower to name them."""
    for name, entry in suite.entries.items():
        if entry.role == "forgetting" and not run.clip.has_text:
            raise InputError(
                f"datasets: {name} has other classes, and a model's file no text tower to tell "
                "them; expected files with one (robustft import --text-from adds it)"
            )
