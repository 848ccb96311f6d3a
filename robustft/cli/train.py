"""`robustft train --method NAME`."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

from robustft.cli import before_after, materials, runs, sets, suites, training
from robustft.cli.ending import end
from robustft.cli.options import read_yaml, resolve
from robustft.cli.run_folder import CONFIG, RESULTS, WEIGHTS, resume_command
from robustft.cli.train_options import TrainOptions
from robustft.errors import InputError, warn
from robustft.methods import METHODS
from robustft.train import forewarn, processes


def train(options: TrainOptions) -> None:
    """Carry out `robustft train`."""
    from robustft.train import checkpoint
    from robustft.train.folder import RESULT

    options = materials.settled(training.located(options))
    if options.dry_run:
        from robustft.cli.plan import print_plan

        if not print_plan(options):
            raise SystemExit(2)
        return
    folder = options.logs / (options.name or _default_name(options))
    main = processes.main()
    if main and options.resume is None and (folder / CONFIG).exists():
        raise InputError(
            f"{folder}: a run is there already; continue it with --resume latest, "
            "or choose another --name"
        )
    evaluated = _evaluated(options, folder)
    device = processes.join(materials.choose_device(options.device))
    trainer, suite = _trainer(options, folder, device)
    before = None if evaluated else before_after.before_training(suite)
    if main and not checkpoint.complete(folder) and not (folder / RESULT).exists():
        training.write_config(folder, options)
        training.write_shots(folder, trainer)
    with contextlib.closing(trainer):
        _run(trainer, options, folder, device, before)
    if trainer.diverged is not None and not evaluated:
        raise trainer.diverged


def _run(
    trainer: Any,
    options: TrainOptions,
    folder: Path,
    device: str,
    before: before_after.Before | None,
) -> None:
    """Train, evaluate, and say what comes next. before: None where the run was evaluated before."""
    from robustft.train.interrupt import Interrupted, Terminated

    try:
        result = trainer.run()
    except (Interrupted, Terminated) as stop:
        if processes.main():
            print(
                f"robustft: stopped at step {stop.step}, saved; continue with: "
                f"{resume_command(folder)}",
                file=sys.stderr,
            )
        raise SystemExit(stop.status) from None
    _say_if_unchanged(trainer, result)
    kind = METHODS[options.method]
    ensembles = [name for name in kind.ensembles if runs.suits(trainer.train, name)]
    steps = before_after.next_steps(folder, ensembles, strengths=bool(kind.parts))
    if before is None:
        print(f"was finished and evaluated before: {folder}")
        end(next=steps)
        return
    trainer.log.results(before_after.compare_run(folder, options.results_db, device, before))
    end(folder, options.results_db, next=steps)


def _trainer(options: TrainOptions, folder: Path, device: str) -> tuple[Any, Any]:
    """The trainer, and the suite of its test sets."""
    method, config = training.check(options, device)
    clip = materials.load_model(options, device)
    inputs = training.load_inputs(options, clip, reference=method.needs_reference)
    # Fail before training, not after.
    suite = suites.first_suite(options, clip, inputs.train.label_space, inputs.templates, device)
    trainer = training.make_trainer(options, folder, clip, inputs, method, config, keep_log=True)
    return trainer, suite


def _say_if_unchanged(trainer: Any, result: Any) -> None:
    """Point out a result that predicts on the validation data what the zero-shot model does."""
    from robustft.models import Classifier

    if not trainer.stages or trainer.validation is None or not trainer.train.classnames:
        return
    clip, device = trainer.clip, next(result.parameters()).device
    before = Classifier.zero_shot(clip, trainer.train.classnames, trainer.templates).to(device)
    some = list(trainer.validation.first(1000))
    if some and forewarn.unchanged(before.eval(), result, some, device):
        warn(
            f"the result predicts the zero-shot model's class on all {sum(map(len, some))} "
            "validation images that were compared: train longer, at a higher rate, or with a "
            "shorter average"
        )


def _default_name(options: TrainOptions) -> str:
    """METHOD-DATA-SEED; DATA is the shortest name of the data that no run on other data has."""
    names = [
        f"{options.method}-{own}-{options.seed}" for own in sets.own_names(options.data_location)
    ]
    for name in names:
        config = options.logs / name / CONFIG
        if not config.is_file() or read_yaml(config).get("data_location") == options.data_location:
            return name
    return names[-1]


def _evaluated(options: TrainOptions, folder: Path) -> bool:
    """Whether the run ended before, and has results on the data that are asked for now."""
    files = (folder / CONFIG, folder / WEIGHTS, folder / RESULTS)
    if not all(file.is_file() for file in files):
        return False
    before = resolve(TrainOptions, folder / CONFIG, {})
    names = ("eval_datasets", "id", "ood", "zero_shot", "results_db")
    return all(getattr(options, name) == getattr(before, name) for name in names)
