"""`robustft eval`: the zero-shot model, or a run's at any strength, on any datasets."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from robustft.cli import before_after, homes, materials, named, roots, runs, sets, suites
from robustft.cli.ending import command, end
from robustft.cli.eval_options import EvalOptions
from robustft.cli.options import read_yaml, refuse_beside_run
from robustft.cli.results import append, measured, record
from robustft.cli.run_folder import CONFIG, RESULTS
from robustft.cli.strengths import strengths
from robustft.errors import InputError
from robustft.train import checks, processes

_WITHOUT_RUN = ("model", "pretrained", "data", "template", "seed")


def evaluate(options: EvalOptions) -> None:
    """Carry out `robustft eval`."""
    options = _located(options)
    asked = named.asked_for(options.eval_datasets, options.id, options.ood, options.zero_shot)
    loading = {
        key: value
        for key in ("batch_size", "workers", "precision")
        if (value := getattr(options, key)) is not None
    }
    if options.save is not None and not options.alpha:
        raise InputError(f"--save: got {options.save} without --alpha, expected both")
    if options.run is None:
        if options.alpha:
            raise InputError("--alpha: got it without --run, expected the folder of a training run")
        _zero_shot(options, asked, loading)
        return
    refuse_beside_run(options, _WITHOUT_RUN)
    device = processes.join(materials.choose_device(options.device))
    if options.alpha:
        _at_strengths(options, options.run, asked, device, loading)
        return
    run, files = runs.open_run(options.run, device), (options.run / RESULTS, options.results_db)
    suite = suites.make_suite(run, asked, device, *files, **loading)
    identity = {"method": run.options.method, "seed": run.options.seed}
    record(measured(suite, run.fine_tuned, **identity), *files)
    _end(options, files[0], report=options.run)


def _end(options: EvalOptions, *written: Path | None, report: Path | None) -> None:
    steps = ["robustft init"] if report is None else [command("report", "--results-db", report)]
    end(*written, options.results_db, next=steps)


def _located(options: EvalOptions) -> EvalOptions:
    """With a root in every registered name, and with the training data or none as data_location."""
    location = options.data_location
    if options.run is not None:
        if location is not None and not (options.suite or roots.names_registered(options)):
            raise InputError(
                f"--data-location: got {location!r} beside --run without registered test sets, "
                "expected one of them: the run has its own training data"
            )
        root = location or _root_of_run(options.run)
        return dataclasses.replace(roots.rooted(options, root), data_location=None)
    home = roots.training_data(options.data, location)
    root = roots.root_of(home)
    if root is None and (
        options.suite or (roots.names_registered(options) and roots.is_root(location))
    ):
        home, root = None, location
    return dataclasses.replace(roots.rooted(options, root), data=None, data_location=home)


def _root_of_run(folder: Path) -> str | None:
    """The root of the registered set that a run was trained on, or None."""
    config = folder / CONFIG
    location = read_yaml(config).get("data_location") if config.is_file() else None
    return roots.root_of(location) if isinstance(location, str) else None


def _at_strengths(
    options: EvalOptions,
    folder: Path,
    asked: list[named.Asked],
    device: str,
    loading: dict[str, Any],
) -> None:
    from robustft.evaluate.curves import weight_curve
    from robustft.models import save_classifier

    for alpha in options.alpha:
        checks.real("--alpha", alpha, least=0, most=1)
    if options.save is not None and options.save.suffix != ".safetensors":
        raise InputError(f"--save: got {options.save}, expected a name ending in .safetensors")
    run = runs.open_run(folder, device)
    at, identity = strengths(run)
    identity["seed"] = run.options.seed
    files = (folder / RESULTS, options.results_db)
    suite = suites.make_suite(run, asked, device, *files, **loading)
    val = materials.load_split(run.options, "val", run.clip.preprocess_val)
    lines, choice, after = weight_curve(suite, at, val, options.alpha, **identity)
    record(lines, *files)
    # The run's own line in a report is now this strength's.
    if identity["method"] == run.options.method:
        before = suite.outputs(run.zero_shot)
        append(before_after.geometry_lines(suite, before, after, **identity), *files)
    print(f"{'chosen by ' * (len(options.alpha) > 1)}ID validation: {choice}")
    if options.save is not None and processes.main():
        found = {**identity, "alpha": choice.alpha}
        save_classifier(options.save, at(choice.alpha), metadata=found)
    _end(options, options.save, files[0], report=folder)


def _zero_shot(options: EvalOptions, asked: list[named.Asked], loading: dict[str, Any]) -> None:
    from robustft.data import load_dataset
    from robustft.models import Classifier, load_clip, resolve_templates

    if not asked:
        raise InputError("--eval-datasets: got nothing, expected at least one dataset")
    device, seed = processes.join(materials.choose_device(options.device)), options.seed or 0
    home = options.data_location or homes.find_home(asked, seed=seed)
    split = "train" if options.data_location or homes.has_split(home, "train", seed) else "test"
    if named.registered(home) is not None and homes.has_split(home, "test", seed):
        split = "test"  # which has the same classes, and is the smaller
    own = home if options.data_location or homes.trains(home, seed=seed) else ""
    reference = load_dataset(home, split, seed=seed)
    clip = load_clip(options.model or "ViT-B-16", options.pretrained, device=device)
    prompts = resolve_templates(options.template or reference.templates or "openai")
    suite = suites.build_suite(
        clip,
        reference.label_space,
        prompts,
        sets.load_sets(asked, own, clip.preprocess_val, seed=seed),
        options.results_db,
        device=device,
        **loading,
    )
    classifier = Classifier.zero_shot(clip, reference.classnames, prompts).to(device)
    record(measured(suite, classifier, method="zero-shot", seed=seed), options.results_db)
    _end(options, report=options.results_db)
