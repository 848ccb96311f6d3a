"""`robustft wise-ft`, `ose`, `vrf` and `soup`: ensembles of a run's model with its zero-shot model,
or of any models of one architecture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustft.cli import materials, pairs
from robustft.cli.ending import command, end
from robustft.cli.ensemble_options import (
    EnsembleOptions,
    OSEOptions,
    SoupOptions,
    VRFOptions,
    WiseFTOptions,
)
from robustft.cli.results import measured, record
from robustft.cli.run_folder import RESULTS
from robustft.cli.runs import Run
from robustft.errors import InputError
from robustft.train import processes

if TYPE_CHECKING:
    from robustft.ensemble.vrf import VRF


def wise_ft(options: WiseFTOptions) -> None:
    """Carry out `robustft wise-ft`."""
    from robustft.evaluate.curves import wise_ft_curve
    from robustft.models import save_classifier

    if options.space != "weights":
        _mix_outputs(options)
        return
    for name, value in (
        ("calibrate", options.calibrate),
        ("feature-store", pairs.store_of(options)),
    ):
        if value:  # no two α have a feature in common
            raise InputError(f"--{name}: got it with --space weights, expected outputs or logits")
    device = processes.join(materials.choose_device(options.device))
    run = pairs.open_two(options, device, "wise-ft")
    suite = pairs.suite_of(options, run, device)
    val = materials.load_split(run.options, "val", run.clip.preprocess_val)
    lines, choice, classifier = wise_ft_curve(
        suite,
        run.zero_shot,
        run.fine_tuned,
        val,
        options.alpha,
        rebuild=run.rebuild,
        **run.identity,
    )
    target = run.folder / "wise-ft.safetensors"
    if processes.main():
        save_classifier(target, classifier, metadata={"method": "wise-ft", "alpha": choice.alpha})
    print(f"chosen by ID validation: {choice}")
    _end(options, run, lines, target)


def ose(options: OSEOptions) -> None:
    """Carry out `robustft ose`."""
    _mix_outputs(options)


def _mix_outputs(options: WiseFTOptions | OSEOptions) -> None:
    from robustft.evaluate.curves import output_curve, outputs_of_both

    device = processes.join(materials.choose_device(options.device))
    run = pairs.open_two(options, device, "ose")
    suite = pairs.suite_of(options, run, device)
    val = materials.load_split(run.options, "val", run.clip.preprocess_val)
    _say_left_out(suite)
    before, after = outputs_of_both(suite, run.zero_shot, run.fine_tuned)
    lines, choice = output_curve(
        suite,
        run.zero_shot,
        run.fine_tuned,
        val,
        options.alpha,
        before=before,
        after=after,
        calibrate=options.calibrate,
        space="logit" if options.space == "logits" else "probability",
        **run.identity,
    )
    print(f"chosen by ID validation: {choice}")
    _end(options, run, lines)


def soup(options: SoupOptions) -> None:
    """Carry out `robustft soup`."""
    from robustft.ensemble.soup import greedy_soup, uniform_soup
    from robustft.models import save_classifier

    device = processes.join(materials.choose_device(options.device))
    run, models = pairs.open_several(options, device)
    suite = pairs.suite_of(options, run, device)
    if options.greedy and not run.train.classnames:
        raise InputError(
            f"--greedy: got it with the captions of {run.train.name}, expected classes, or "
            "--no-greedy"
        )
    if options.greedy:
        val = materials.load_split(run.options, "val", run.clip.preprocess_val)
        made, recipe = greedy_soup(models, lambda one: suite.collect(one, val), rebuild=run.rebuild)
        taken = [options.finetuned[i] for i in recipe.ingredients]
        print(f"{recipe}: {', '.join(taken)}")
    else:
        made, taken = uniform_soup(models, rebuild=run.rebuild), options.finetuned
    target = run.folder / "soup.safetensors"
    if processes.main():
        save_classifier(target, made, metadata={"method": "soup", "ingredients": taken})
    method = "greedy-soup" if options.greedy else "uniform-soup"
    lines = measured(suite, made, method=method, seed=run.options.seed)
    _end(options, run, lines, target)


def vrf(options: VRFOptions) -> None:
    """Carry out `robustft vrf`."""
    from robustft.ensemble.vrf_export import check_folder
    from robustft.evaluate.curves import (
        on_both,
        outputs_of_both,
        ratio_lines,
        vrf_distances,
        vrf_lines,
        vrf_sweep,
    )

    estimators = _estimators(options)
    if options.export is not None:
        check_folder(options.export)
    device = processes.join(materials.choose_device(options.device))
    run = pairs.open_two(options, device, "vrf")
    suite = pairs.suite_of(options, run, device)
    val = materials.load_split(run.options, "val", run.clip.preprocess_val)
    models = (run.zero_shot, run.fine_tuned)
    _say_left_out(suite)
    before, after = outputs_of_both(suite, *models)
    if options.as_released:
        plain, tuned = _reported(suite, before, after, options.calibrate)
    else:
        plain, tuned = on_both(suite, *models, val)
    train_plain, train_tuned = on_both(suite, *models, run.train)
    neighbors = [(one.p, one.k) for one in estimators]
    fitted = estimators[0].fit_outputs(
        train_tuned, train_plain, val_finetuned=tuned, val_zeroshot=plain
    )
    chosen, points = vrf_sweep(fitted, neighbors, plain, tuned)
    print(_fitted(chosen, len(tuned)))
    lines: list[dict[str, Any]] = []
    ratios: list[dict[str, Any]] = []
    for point in points:
        more = {"p": point.p, "k": point.k_} if len(points) > 1 else {}
        who = {**run.identity, **more, "selected": point is chosen}
        distances = vrf_distances(point, before=before, after=after)
        lines += vrf_lines(point, suite, distances, before=before, after=after, val=val, **who)
        # The ratio is VRF's premise: against the distance to the failures.
        if point is chosen and options.bank == "failures":
            ratios = ratio_lines(distances, suite, before=before, after=after, **run.identity)
    lines += ratios
    target = run.folder / "vrf.safetensors"
    if processes.main():
        chosen.save(target)
        if options.export is not None:
            chosen.export(options.export, *models, suite.classnames)
    _end(options, run, lines, target, options.export)


def _end(
    options: EnsembleOptions, run: Run, lines: list[dict[str, Any]], *written: Path | None
) -> None:
    """Record an ensemble's result lines, and say what was written and what is next."""
    results = run.folder / RESULTS
    record(lines, results, options.results_db)
    end(*written, results, options.results_db, next=[command("report", "--results-db", run.folder)])


def _estimators(options: VRFOptions) -> list[VRF]:
    """One a p or k to try; wrong settings are said before any model is loaded."""
    from robustft.ensemble.vrf import VRF

    asked: list[dict[str, Any]] = [{"k": k} for k in options.k] or [{"p": p} for p in options.p]
    if options.as_released and (options.k or options.p != [0.001]):
        raise InputError("--as-released: got it with --p or --k, expected neither: it has its own")
    return [
        VRF(
            a=options.a,
            b=options.b,
            squared=options.squared,
            calibrate=options.calibrate,
            omega=options.omega,
            space=options.space,
            bank=options.bank,
            features=options.features,
            as_released=options.as_released,
            **one,
        )
        for one in asked
    ]


def _reported(suite: Any, before: Any, after: Any, calibrate: bool) -> tuple[Any, Any]:
    """Both models' outputs on the ID test set, on which the release solves its temperatures."""
    name = next((name for name, entry in suite.entries.items() if entry.role == "id"), None)
    if name is None:
        raise InputError("--as-released: got no ID test set, expected --id SET")
    if calibrate:
        print(f"temperatures: solved on {name}, which is reported, as the release does")
    return before[name], after[name]


def _fitted(estimator: VRF, n: int) -> str:
    """What was fitted, in one line, with what the choice rests on."""
    from robustft.accuracy import wilson_interval

    text = f"a={estimator.a_:.4g}, b={estimator.b_:.4g}, k={estimator.k_} of "
    text += f"{len(estimator.failures_)} rows"
    chosen = estimator.selection_
    if chosen is None:
        return text
    low, high = (100 * end for end in wilson_interval(round(chosen.accuracy * n), n))
    return text + (
        f"; chosen by ID validation: {100 * chosen.accuracy:.1f} % of {n} samples (95 % interval "
        f"{low:.1f} to {high:.1f}), {chosen.tied} of the grid's points tied"
    )


def _say_left_out(suite: Any) -> None:
    """Outputs are mixed class by class: sets with captions have none."""
    for name in suite.captioned:
        print(f"{name}: has captions and no classes, so it is left out")
