"""Suites of test sets: of a run that is opened, of one that is to start, and of loaded sets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustft.cli import materials, named, sets
from robustft.cli.train_options import TrainOptions

if TYPE_CHECKING:
    from robustft.cli.runs import Run
    from robustft.data.classes import LabelSpace
    from robustft.evaluate.suite import Suite
    from robustft.models import Clip


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
        batch_size=max(64, materials.settled(options).batch_size or 0),
        workers=options.workers,
        precision=options.precision,
    )


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
