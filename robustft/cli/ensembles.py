"""`robustft wise-ft` and `robustft vrf`: ensembles of a run's model with its zero-shot model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustft.cli import roots, runs, sets
from robustft.cli.options import setting
from robustft.errors import InputError
from robustft.methods import METHODS
from robustft.train import processes

if TYPE_CHECKING:
    from robustft.ensemble.vrf import VRF

_GRID = [round(0.1 * i, 1) for i in range(11)]


@dataclass(frozen=True)
class WiseFTOptions:
    """Options of `robustft wise-ft`."""

    run: Path | None = setting(None, "Run folder of the fine-tuned model.", also="--run-dir")
    method_module: str | None = runs.method_module()
    alpha: list[float] = setting(_GRID, "Weights of the fine-tuned model to try.")
    space: str = setting(
        "weights",
        "What is mixed: weights (WiSE-FT), outputs (OSE, probabilities) or logits (LSE).",
        choices=("weights", "outputs", "logits"),
    )
    calibrate: bool = setting(
        False, "With --space outputs or logits: temperatures from ID validation."
    )
    data_module: str | None = roots.data_module()
    data_location: str | None = setting(
        None, "The folder below which registered test sets lie [default: the run's]."
    )
    suite: list[str] = setting([], roots.SUITE_HELP)
    eval_datasets: list[str] = setting([], runs.SETS_HELP)
    id: list[str] = setting([], runs.ID_HELP)
    ood: list[str] = setting([], runs.OOD_HELP)
    zero_shot: list[str] = setting([], runs.ZERO_SHOT_HELP)
    batch_size: int | None = setting(None, "Images at a time [default: the run's].")
    workers: int | None = setting(None, "Processes that load images [default: the run's].")
    precision: str | None = setting(
        None, "Of the forward passes [default: the run's].", choices=runs.PRECISIONS
    )
    results_db: Path | None = setting(None, "Also append result lines to this file.")
    device: str = setting("auto", "auto, cpu or cuda.")


@dataclass(frozen=True)
class VRFOptions:
    """Options of `robustft vrf`."""

    run: Path | None = setting(None, "Run folder of the fine-tuned model.", also="--run-dir")
    method_module: str | None = runs.method_module()
    p: float = setting(0.001, "k is this share of the failure set, at least 1.")
    k: int | None = setting(None, "k itself.")
    a: float | None = setting(
        None,
        "Distance of equal weights; published for ImageNet: 1.5 [default: by ID validation].",
    )
    b: float | None = setting(
        None, "Width of the sigmoid; published for ImageNet: 0.6 [default: by ID validation]."
    )
    omega: str = setting(
        "sigmoid",
        "The weight of a distance d: sigmoid, σ(-(d-a)/b); linear, b(a-d) within 0 and 1; binary, "
        "1 where d < a.",
        choices=("sigmoid", "linear", "binary"),
    )
    space: str = setting(
        "probability",
        "What is mixed: probabilities, or logits.",
        choices=("probability", "logit"),
    )
    bank: str = setting(
        "failures",
        "What distances are taken to: the zero-shot failures, or all training images.",
        choices=("failures", "all"),
    )
    squared: bool = setting(True, "Squared L2 distance, as published a and b expect.")
    calibrate: bool = setting(True, "Temperatures from ID validation.")
    data_module: str | None = roots.data_module()
    data_location: str | None = setting(
        None, "The folder below which registered test sets lie [default: the run's]."
    )
    suite: list[str] = setting([], roots.SUITE_HELP)
    eval_datasets: list[str] = setting([], runs.SETS_HELP)
    id: list[str] = setting([], runs.ID_HELP)
    ood: list[str] = setting([], runs.OOD_HELP)
    zero_shot: list[str] = setting([], runs.ZERO_SHOT_HELP)
    batch_size: int | None = setting(None, "Images at a time [default: the run's].")
    workers: int | None = setting(None, "Processes that load images [default: the run's].")
    precision: str | None = setting(
        None, "Of the forward passes [default: the run's].", choices=runs.PRECISIONS
    )
    results_db: Path | None = setting(None, "Also append result lines to this file.")
    device: str = setting("auto", "auto, cpu or cuda.")


def wise_ft(options: WiseFTOptions) -> None:
    """Mix zero-shot and fine-tuned model at every α; α is chosen on ID validation accuracy."""
    from robustft.evaluate.curves import output_curve, outputs_of_both, wise_ft_curve
    from robustft.models import save_classifier

    if options.calibrate and options.space == "weights":
        raise InputError("--calibrate: got it with --space weights, expected outputs or logits")
    device = processes.join(runs.choose_device(options.device))
    run = _open(options.run, device, "wise-ft" if options.space == "weights" else "ose")
    suite = _suite(options, run, device)
    val = runs.load_split(run.options, "val", run.clip.preprocess_val)
    models, identity = (run.zero_shot, run.fine_tuned), _identity(run)
    if options.space != "weights":
        before, after = outputs_of_both(suite, *models)
        lines, choice = output_curve(
            suite,
            *models,
            val,
            options.alpha,
            before=before,
            after=after,
            calibrate=options.calibrate,
            space="logit" if options.space == "logits" else "probability",
            **identity,
        )
    else:
        own_text = METHODS[run.options.method].head_from_text
        rebuild = (run.clip.tokenizer, run.templates) if own_text else None
        lines, choice, classifier = wise_ft_curve(
            suite, *models, val, options.alpha, rebuild=rebuild, **identity
        )
        target = run.folder / "wise-ft.safetensors"
        if processes.main():
            found = {"method": "wise-ft", "alpha": choice.alpha}
            save_classifier(target, classifier, metadata=found)
        print(f"written: {target}")
    print(f"chosen by ID validation: {choice}")
    runs.record(lines, run.folder / runs.RESULTS, options.results_db)


def vrf(options: VRFOptions) -> None:
    """Weigh the two models sample by sample, by the distance to the zero-shot failures."""
    from robustft.ensemble.vrf import VRF
    from robustft.evaluate.curves import fit_vrf, outputs_of_both, ratio_lines, vrf_lines

    device = processes.join(runs.choose_device(options.device))
    run = _open(options.run, device, "vrf")
    suite = _suite(options, run, device)
    val = runs.load_split(run.options, "val", run.clip.preprocess_val)
    estimator = VRF(
        p=options.p,
        k=options.k,
        a=options.a,
        b=options.b,
        squared=options.squared,
        calibrate=options.calibrate,
        omega=options.omega,
        space=options.space,
        bank=options.bank,
    )
    fit_vrf(estimator, suite, run.zero_shot, run.fine_tuned, run.train, val)
    print(_fitted(estimator, len(val)))
    before, after = outputs_of_both(suite, run.zero_shot, run.fine_tuned)
    lines = vrf_lines(estimator, suite, before=before, after=after, **_identity(run))
    if options.bank == "failures":  # the ratio is VRF's premise: against the distance to them
        lines += ratio_lines(estimator, suite, before=before, after=after, **_identity(run))
    runs.record(lines, run.folder / runs.RESULTS, options.results_db)
    target = run.folder / "vrf.safetensors"
    if processes.main():
        estimator.save(target)
    print(f"written: {target}")


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


def _suite(options: WiseFTOptions | VRFOptions, run: runs.Run, device: str) -> Any:
    root = options.data_location or roots.root_of(run.options.data_location)
    options = roots.rooted(options, root)
    return runs.make_suite(
        run,
        sets.asked_for(options.eval_datasets, options.id, options.ood, options.zero_shot),
        device,
        run.folder / runs.RESULTS,
        options.results_db,
        batch_size=options.batch_size,
        workers=options.workers,
        precision=options.precision,
    )


def _identity(run: runs.Run) -> dict[str, Any]:
    """The fields of a result line that say which run an ensemble is built on."""
    return {"base": run.options.method, "seed": run.options.seed}


def _open(folder: Path | None, device: str, ensemble: str) -> runs.Run:
    """The run to ensemble, if its method's result is one for this ensemble."""
    if folder is None:
        raise InputError("--run: got nothing, expected the folder of a training run")
    run = runs.open_run(folder, device)
    runs.check_ensemble(run, ensemble)
    return run
