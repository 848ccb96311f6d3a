"""What the verbs share: a run folder's files, and the model and data that its options name."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from robustft.cli import before_after, named, roots, sets
from robustft.cli.options import method_options, read_yaml, resolve
from robustft.cli.run_folder import CONFIG, RESULTS, WEIGHTS, resume_command
from robustft.cli.train_options import TrainOptions
from robustft.errors import InputError, warn
from robustft.methods import METHODS, Method, make_method
from robustft.optional import require
from robustft.train import processes

if TYPE_CHECKING:
    from robustft.data.classes import LabelSpace
    from robustft.data.datasets import ImageDataset
    from robustft.evaluate.collect import Outputs
    from robustft.evaluate.retrieval import Recalls
    from robustft.evaluate.suite import Suite
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
    options = settled(resolve(TrainOptions, folder / CONFIG, {}, imports=False))
    clip = load_model(options, device)
    train = load_split(options, "train", clip.preprocess_val)
    templates = choose_templates(options, train)
    zero_shot = Classifier.zero_shot(clip, train.classnames, templates)
    fine_tuned = load_classifier(folder / WEIGHTS, copy_clip(clip))
    models = (zero_shot.to(device), fine_tuned.to(device))
    own_text = METHODS[options.method].head_from_text
    return Run(folder, options, clip, train, templates, *models, options.method, own_text)


def settled(options: TrainOptions) -> TrainOptions:
    """With the method's published settings where none were given."""
    published = METHODS[options.method].published
    values = {
        name: value
        for name, value in dataclasses.asdict(published).items()
        if getattr(options, name) is None
    }
    lr = options.lr or published.lr
    if "min_lr" in values:
        values["min_lr"] = min(values["min_lr"], lr)
    if "epochs" in values:
        values["epochs"] = max(values["epochs"], 1)
    return dataclasses.replace(options, **values)


def method_of(options: TrainOptions) -> Method:
    """The method with its settings. Errors: InputError for one that it does not have."""
    given = method_options(options.option)
    if options.ema is not None and averages_itself(options.method):
        if "ema" in given:
            raise InputError("--ema: got it beside --option ema, expected one of them")
        given["ema"] = options.ema
    return make_method(options.method, **given)


def averages_itself(method: str) -> bool:
    """Whether the method has a moving average of its own, whose momentum --ema is."""
    return "ema" in {field.name for field in dataclasses.fields(METHODS[method].options)}


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


def load_model(options: TrainOptions, device: str) -> Clip:
    from robustft.models import load_clip

    require("open_clip", extra="openclip")
    torch.manual_seed(options.seed)  # of the initial weights, where there is no checkpoint
    return load_clip(options.model, options.pretrained, device=device)


def load_split(options: TrainOptions, split: str, transform: Any) -> ImageDataset:
    """A split of the training data, with a transform. The validation split is carved from train
    by the run's seed where the data has none."""
    from robustft.data import load_dataset
    from robustft.data.few_shot import few_shot

    dataset = load_dataset(
        options.data_location, split, seed=options.seed, val_fraction=options.val_fraction
    )
    if options.shots is not None and split != "test":
        dataset = few_shot(dataset, options.shots, options.seed)
    return dataset.with_transform(transform)


def choose_templates(options: TrainOptions, dataset: ImageDataset) -> list[Any]:
    """The templates named by --template, else the dataset's own, else OpenAI's eighty."""
    from robustft.models import resolve_templates

    if options.template is not None:
        return resolve_templates(options.template)
    return dataset.templates or resolve_templates("openai")


def make_suite(
    run: Run, asked: Sequence[named.Asked], device: str, *files: Path | None, **loading: Any
) -> Suite:
    """The suite of the sets asked for, else of those that the run was evaluated on.

    files: result files that its lines will go to; loading: batch_size, workers and precision where
    they are not the run's own.
    """
    o = run.options
    loaded = _load_sets(o, asked, run.clip.preprocess_val)
    loading = {"batch_size": o.batch_size, "workers": o.workers, "precision": o.precision} | {
        key: value for key, value in loading.items() if value is not None
    }
    return build_suite(
        run.clip, run.train.label_space, run.templates, loaded, *files, device=device, **loading
    )


def _load_sets(
    options: TrainOptions, asked: Sequence[named.Asked], transform: Any, *, say: bool = True
) -> sets.LoadedSets:
    """The sets asked for; else the run's, with its own test set and one to see it forget, unless
    others are named for these roles."""
    if not asked:
        asked = named.asked_for(options.eval_datasets, options.id, options.ood, options.zero_shot)
        if not options.eval_datasets:  # which states the whole list
            added = sets.default_sets(options.data_location, asked, seed=options.seed)
            for one, flag in added if say else ():
                some = "" if one.first is None else f"{one.first} images of the built-in "
                print(f"{flag}: none is named, so {some}{one.spec}")
            asked = sorted([*asked, *(one for one, _ in added)], key=named.by_role)
    return sets.load_sets(
        asked,
        options.data_location,
        transform,
        seed=options.seed,
        val_fraction=options.val_fraction,
    )


def first_suite(
    options: TrainOptions,
    clip: Clip,
    classes: LabelSpace,
    templates: list[Any],
    device: str,
    *,
    say: bool = True,
) -> Suite:
    """The suite of a run that is to start: what is wrong with its sets is said before training.
    say: print which sets it has."""
    return build_suite(
        clip,
        classes,
        templates,
        _load_sets(options, (), clip.preprocess_val, say=say),
        options.results_db,
        say=say,
        device=device,
        # A forward pass of 64 takes less memory than a step of any size.
        batch_size=max(64, settled(options).batch_size or 0),
        workers=options.workers,
        precision=options.precision,
    )


@dataclass(frozen=True)
class Before:
    """A run's suite, and the zero-shot model's outputs and recalls on it, from before training."""

    suite: Suite
    outputs: dict[str, Outputs]
    recalls: dict[str, Recalls]


def before_training(suite: Suite) -> Before:
    """Evaluate the zero-shot model and print its accuracies."""
    from robustft.models import Classifier

    zero_shot = Classifier.zero_shot(suite.clip, suite.classnames, suite.templates)
    before = Before(suite, suite.outputs(zero_shot), suite.retrieve(zero_shot))
    record(lines_of(suite, before.outputs, before.recalls, method="zero-shot", seed=0))
    return before


def lines_of(
    suite: Suite, outputs: dict[str, Outputs], recalls: dict[str, Recalls], **identity: Any
) -> list[dict[str, Any]]:
    """The result lines of one model on all sets of a suite."""
    return suite.records(outputs, **identity) + suite.retrieval_records(recalls, **identity)


def build_suite(
    clip: Clip,
    classes: LabelSpace,
    templates: list[Any],
    loaded: sets.LoadedSets,
    *files: Path | None,
    say: bool = True,
    **loading: Any,
) -> Suite:
    """A suite of loaded sets; say: print their roles. Errors: InputError for a role in doubt, or
    where a result file knows another set by the name of one of these."""
    from robustft.evaluate.suite import Suite
    from robustft.losses import all_ranks

    sets.check_names(loaded, [file for file in files if file is not None])
    suite = Suite(
        clip,
        classes,
        templates,
        loaded.datasets,
        id_name=loaded.id_name,
        roles=loaded.roles,
        paths=loaded.paths,
        group=all_ranks(),
        **loading,
    )
    for name, entry in (suite.entries | suite.captioned).items() if say else ():
        print(f"{name}: {entry.role} ({entry.why}), {entry.dataset.held}")
    return suite


def evaluate_run(
    folder: Path,
    asked: Sequence[named.Asked],
    results_db: Path | None,
    device: str,
    **loading: Any,
) -> None:
    """Evaluate a run's fine-tuned model; lines go to its own results and to `results_db`."""
    run = open_run(folder, device)
    suite = make_suite(run, asked, device, folder / RESULTS, results_db, **loading)
    lines = lines_of(
        suite,
        suite.outputs(run.fine_tuned),
        suite.retrieve(run.fine_tuned),
        method=run.options.method,
        seed=run.options.seed,
    )
    record(lines, folder / RESULTS, results_db)


def compare_run(
    folder: Path, results_db: Path | None, device: str, before: Before | None = None
) -> list[dict[str, Any]]:
    """Evaluate a run's fine-tuned model beside its zero-shot model, print both, and append the
    lines to the run's own results and to `results_db`. before: where that was done already.

    Returns: the lines of the run's own model."""
    run = open_run(folder, device)
    files, method, seed = (folder / RESULTS, results_db), run.options.method, run.options.seed
    if before is None:
        suite = make_suite(run, (), device, *files)
        models = [run.zero_shot] if method == "zero-shot" else [run.zero_shot, run.fine_tuned]
        outputs = suite.outputs_each(models)
        recalls = [suite.retrieve(model) for model in models]
    else:
        suite, outputs, recalls = before.suite, [before.outputs], [before.recalls]
        if method != "zero-shot":
            outputs.append(suite.outputs(run.fine_tuned))
            recalls.append(suite.retrieve(run.fine_tuned))
    first, after = outputs[0], outputs[-1]
    lines = lines_of(suite, first, recalls[0], method="zero-shot", seed=seed)
    if method == "zero-shot":
        record(lines, *files)
        return lines
    tuned = lines_of(suite, after, recalls[-1], method=method, seed=seed)
    geometry = before_after.geometry_lines(suite, first, after, method=method, seed=seed)
    still = before_after.geometry_lines(suite, first, first, method="zero-shot", seed=seed)
    append(lines + tuned + still + geometry, *files)
    print(before_after.comparison(lines, tuned, geometry))
    if before_after.unchanged(first, after):
        warn(
            "the fine-tuned model predicts as the zero-shot model does on every image: look at the "
            "learning rate, the number of steps, and a moving average longer than the run"
        )
    return tuned + geometry


def choose_device(name: str) -> str:
    """ "auto" is CUDA where there is one, else the CPU."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device: got {name!r}, expected auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("--device: got 'cuda', but torch finds no CUDA device")
    return name


def append(lines: list[dict[str, Any]], *files: Path | None) -> None:
    """Append result lines to the files that are not None, on the main process."""
    from robustft.evaluate.results import append_result

    if not processes.main():
        return
    for line in lines:
        for file in files:
            if file is not None:
                append_result(file, line)


def record(lines: list[dict[str, Any]], *files: Path | None) -> None:
    """Print one line an evaluation and append it to the result files; corruptions of one set have a
    line together."""
    from robustft.evaluate.corruptions import summary
    from robustft.evaluate.results import headline, headline_name
    from robustft.evaluate.retrieval import MEASURES as RECALLS
    from robustft.evaluate.segmentation import MEASURES as OF_MAPS

    append(lines, *files)
    for line in lines:
        name, value = line.get("dataset"), headline(line)
        if value is not None:
            alpha = "" if line.get("alpha") is None else f" α={line['alpha']:g}"
            what = headline_name(line) + " " * (headline_name(line) != "")
            own = "".join(
                f", {measure} {100 * line[key]:.2f}"
                for measure in ("macro-f1", "worst-group", *RECALLS, *OF_MAPS[1:])
                if line.get(key := f"{name}:{measure}") is not None
            )
            print(f"{line['method']}{alpha}  {name}: {what}{100 * value:.2f}{own}")
    for text in summary(lines):
        print(text)
