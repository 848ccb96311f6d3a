"""The models of an ensemble, and the suite that it is evaluated on.

They are a run's (`--run`), or anybody's (`--zeroshot`, `--finetuned`): anything that `--pretrained`
takes. A classifier's file brings its head; for any other model a head is made from its text tower,
the class names and the templates.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustft.cli import materials, named, roots, runs, sets, stores, suites
from robustft.cli.ensemble_options import EnsembleOptions, PairOptions, SoupOptions
from robustft.cli.options import refuse_beside_run
from robustft.cli.run_folder import RESULTS
from robustft.cli.train_options import TrainOptions
from robustft.errors import InputError
from robustft.models.clip import Clip

if TYPE_CHECKING:
    from robustft.data.datasets import ImageDataset
    from robustft.evaluate.suite import Suite
    from robustft.features import FeatureStore
    from robustft.models import Classifier

_WITHOUT_RUN = ("zeroshot", "finetuned", "model", "data", "template", "seed", "out")


def open_two(options: PairOptions, device: str, ensemble: str) -> runs.Run:
    """The run to ensemble, or any two models as one.

    Errors: InputError where the run's method or the data are none for this ensemble, for a flag
    that is missing or one too many, or a head that does not fit the data's classes.
    """
    run = _pair(options, device) if options.run is None else _run(options, device, ensemble)
    if not runs.suits(run.train, ensemble):
        raise InputError(
            f"{ensemble}: got the captions of {run.train.name}, expected data with classes "
            "(wise-ft takes both)"
        )
    return run


def _run(options: PairOptions, device: str, ensemble: str) -> runs.Run:
    refuse_beside_run(options, _WITHOUT_RUN)
    assert options.run is not None
    run = runs.open_run(options.run, device)
    runs.check_ensemble(run, ensemble)
    return run


def _pair(options: PairOptions, device: str) -> runs.Run:
    if options.zeroshot is None and options.finetuned is None:
        raise InputError(
            "--run: got nothing, expected the folder of a training run, or --zeroshot and "
            "--finetuned"
        )
    if options.zeroshot is None or options.finetuned is None:
        missing = "--zeroshot" if options.zeroshot is None else "--finetuned"
        raise InputError(f"{missing}: got nothing, expected the other model's weights, too")
    o, data, templates, clip = _begin(options, options.finetuned)
    after, own_text = _classifier(clip, data, templates, "--finetuned")
    first = _load_model(options, options.zeroshot)
    before, _ = _classifier(first, data, templates, "--zeroshot")
    clip = dataclasses.replace(clip, has_text=clip.has_text and first.has_text)
    name = _name_of(options.finetuned)
    folder = options.out or Path("logs") / name
    models = (before.to(device), after.to(device))
    return runs.Run(folder, o, clip, data, templates, *models, name, own_text)


def open_several(options: SoupOptions, device: str) -> tuple[runs.Run, list[Classifier]]:
    """Several fine-tuned models, and the last of them as a run (of which it is both ends)."""
    if not options.finetuned:
        raise InputError("--finetuned: got nothing, expected the weights of several models")
    o, data, templates, clip = _begin(options, options.finetuned[0])
    found: list[Classifier] = []
    own: list[bool] = []
    for source in options.finetuned:
        clip = clip if not found else _load_model(options, source)
        classifier, own_text = _classifier(clip, data, templates, "--finetuned")
        found.append(classifier.to(device))
        own.append(own_text)
    folder = options.out or Path("logs") / f"{_name_of(options.finetuned[0])}-soup"
    last = found[-1]
    run = runs.Run(folder, o, clip, data, templates, last, last, "soup", all(own))
    return run, found


def _begin(
    options: EnsembleOptions, source: str
) -> tuple[TrainOptions, ImageDataset, list[Any], Clip]:
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
    clip = _load_model(options, source)
    data = materials.load_split(o, "train", clip.preprocess_val)
    return o, data, materials.choose_templates(o, data), clip


def _load_model(options: EnsembleOptions, source: str) -> Clip:
    """One of the two models, with or without a text tower."""
    from robustft.models import load_clip

    return load_clip(options.model or "ViT-B-16", source, image_only=True)


def _name_of(source: str) -> str:
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


def suite_of(options: EnsembleOptions, run: runs.Run, device: str) -> Suite:
    """The suite of the test sets that the options name, whose lines go to the run's results.

    Errors: InputError as for loading them, and for sets that the models cannot be evaluated on."""
    root = roots.root_of(run.options.data_location)
    if isinstance(options, PairOptions) and options.run is not None:
        root = options.data_location or root
    options = roots.rooted(options, root)
    suite = suites.make_suite(
        run,
        _asked_sets(options, run),
        device,
        run.folder / RESULTS,
        options.results_db,
        batch_size=options.batch_size,
        workers=options.workers,
        precision=options.precision,
        store=store_of(options),
    )
    _check_text(run, suite)
    return suite


def store_of(options: EnsembleOptions) -> FeatureStore | None:
    """The store that --feature-store names, or None."""
    spec = options.feature_store if isinstance(options, PairOptions) else stores.OFF
    return stores.opened(None if spec == "on" else spec)


def _asked_sets(options: EnsembleOptions, run: runs.Run) -> list[named.Asked]:
    """The test sets that the options name; of models without a text tower, the data's own."""
    asked = named.asked_for(options.eval_datasets, options.id, options.ood, options.zero_shot)
    if not asked and not run.clip.has_text:
        own = sets.default_sets(run.options.data_location, [], seed=run.options.seed)
        asked = [one for one, _ in own if one.role == "id"]
    return asked


def _check_text(run: runs.Run, suite: Suite) -> None:
    """InputError for a test set of other classes, where a model has no text tower to name them."""
    for name, entry in suite.entries.items():
        if entry.role == "forgetting" and not run.clip.has_text:
            raise InputError(
                f"datasets: {name} has other classes, and a model's file no text tower to tell "
                "them; expected files with one (robustft import --text-from adds it)"
            )
