"""`robustft wise-ft`, `ose`, `vrf` and `soup`: ensembles of a run's model with its zero-shot model,
or of any models of one architecture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustft.cli import pairs, roots, runs, stores, train_options
from robustft.cli.commas import split_sets
from robustft.cli.ending import command, end
from robustft.cli.options import flag, setting
from robustft.ensemble.select import ALPHAS
from robustft.errors import InputError
from robustft.train import processes

if TYPE_CHECKING:
    from robustft.ensemble.vrf import VRF

_WEIGHTS = "A checkpoint of open_clip, WiSE-FT, FLYP, R-Adapter or robustft, or a tag."


@dataclass(frozen=True)
class EnsembleOptions:
    """What every ensemble takes: the models, the test sets, and how to evaluate."""

    method_module: str | None = train_options.method_module()
    data_module: str | None = roots.data_module()
    data: str | None = setting(None, f"Without --run: the training data. {roots.DATA_HELP}")
    data_location: str | None = setting(
        None,
        "The folder below which registered sets lie [default: the run's]; without --run the "
        "training data: a folder, a .csv/.tsv or digits.",
    )
    model: str | None = setting(
        None, "Without --run: open_clip model name of both models [default: ViT-B-16]."
    )
    template: str | None = setting(
        None, "Without --run: openai, simple, photo, or a file with one {} a line."
    )
    seed: int | None = setting(None, "Without --run: seed of the splits [default: 0].")
    out: Path | None = setting(
        None, "Without --run: folder for the results [default: logs/ and the model's name]."
    )
    suite: list[str] = setting([], roots.SUITE_HELP)
    eval_datasets: list[str] = setting([], train_options.SETS_HELP, commas=split_sets)
    id: list[str] = setting([], train_options.ID_HELP, commas=split_sets)
    ood: list[str] = setting([], train_options.OOD_HELP, commas=split_sets)
    zero_shot: list[str] = setting([], train_options.ZERO_SHOT_HELP, commas=split_sets)
    batch_size: int | None = setting(None, "Images at a time [default: 256, or the run's].")
    workers: int | None = setting(None, "Processes that load images [default: 0, or the run's].")
    precision: str | None = setting(
        None,
        "Of the forward passes [default: fp32, or the run's].",
        choices=train_options.PRECISIONS,
    )
    results_db: Path | None = setting(None, "Also append result lines to this file.")
    device: str = setting("auto", "auto, cpu or cuda.")


@dataclass(frozen=True)
class PairOptions(EnsembleOptions):
    """The two models: of a run, or any two files."""

    run: Path | None = setting(None, "Run folder of the fine-tuned model.", also="--run-dir")
    zeroshot: str | None = setting(None, f"Without --run: the model before fine-tuning. {_WEIGHTS}")
    finetuned: str | None = setting(None, f"Without --run: the model after it. {_WEIGHTS}")
    feature_store: str = setting(
        stores.OFF,
        "Folder where the models' features are kept, so that the next command takes seconds; on is "
        "the one that training uses.",
    )


@dataclass(frozen=True)
class WiseFTOptions(PairOptions):
    """Options of `robustft wise-ft`."""

    alpha: list[float] = setting(list(ALPHAS), "Weights of the fine-tuned model to try.")
    space: str = setting(
        "weights",
        "What is mixed: weights (WiSE-FT), outputs (OSE, probabilities) or logits (LSE).",
        choices=("weights", "outputs", "logits"),
    )
    calibrate: bool = setting(
        False, "With --space outputs or logits: temperatures from ID validation."
    )


@dataclass(frozen=True)
class OSEOptions(PairOptions):
    """Options of `robustft ose`."""

    alpha: list[float] = setting(list(ALPHAS), "Weights of the fine-tuned model to try.")
    space: str = setting(
        "outputs",
        "What is mixed: outputs (OSE, probabilities) or logits (LSE).",
        choices=("outputs", "logits"),
    )
    calibrate: bool = setting(False, "Temperatures from ID validation.")


@dataclass(frozen=True)
class SoupOptions(EnsembleOptions):
    """Options of `robustft soup`."""

    finetuned: list[str] = setting(
        [], f"The fine-tuned models; repeated, or separated by commas. {_WEIGHTS}"
    )
    greedy: bool = setting(True, "Keep what does not lower ID validation; else the mean of all.")


@dataclass(frozen=True)
class VRFOptions(PairOptions):
    """Options of `robustft vrf`."""

    p: list[float] = setting(
        [0.001],
        "k is this share of the failure set, at least 1; of several, ID validation chooses.",
    )
    k: list[int] = setting([], "k itself, instead; of several, ID validation chooses.")
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
    features: str = setting(
        "finetuned", "Whose features distances are taken in.", choices=("finetuned", "zeroshot")
    )
    squared: bool = setting(True, "Squared L2 distance, as published a and b expect.")
    calibrate: bool = setting(True, "Temperatures from ID validation.")
    as_released: bool = setting(
        False,
        "What the authors' code does: k = round(1000·|V|/N), temperatures solved on the reported "
        "ID test set, a=1.5, b=0.6.",
    )
    export: Path | None = setting(
        None, "Also write a folder that runs in PyTorch, and as ONNX, without robustft."
    )


def wise_ft(options: WiseFTOptions) -> None:
    """Mix zero-shot and fine-tuned model at every α; α is chosen on ID validation accuracy."""
    from robustft.evaluate.curves import wise_ft_curve
    from robustft.models import save_classifier

    if options.space != "weights":
        _mix_outputs(options)
        return
    for name, value in (("calibrate", options.calibrate), ("feature-store", _kept(options))):
        if value:  # no two α have a feature in common
            raise InputError(f"--{name}: got it with --space weights, expected outputs or logits")
    device = processes.join(runs.choose_device(options.device))
    run = _open(options, device, "wise-ft")
    suite = _suite(options, run, device)
    val = runs.load_split(run.options, "val", run.clip.preprocess_val)
    rebuild = (run.clip.tokenizer, run.templates) if run.own_text else None
    lines, choice, classifier = wise_ft_curve(
        suite, run.zero_shot, run.fine_tuned, val, options.alpha, rebuild=rebuild, **_identity(run)
    )
    target = run.folder / "wise-ft.safetensors"
    if processes.main():
        save_classifier(target, classifier, metadata={"method": "wise-ft", "alpha": choice.alpha})
    print(f"chosen by ID validation: {choice}")
    _end(options, run, lines, target)


def ose(options: OSEOptions) -> None:
    """Mix both models' outputs at every α; α is chosen on ID validation accuracy."""
    _mix_outputs(options)


def _mix_outputs(options: WiseFTOptions | OSEOptions) -> None:
    from robustft.evaluate.curves import output_curve, outputs_of_both

    device = processes.join(runs.choose_device(options.device))
    run = _open(options, device, "ose")
    suite = _suite(options, run, device)
    val = runs.load_split(run.options, "val", run.clip.preprocess_val)
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
        **_identity(run),
    )
    print(f"chosen by ID validation: {choice}")
    _end(options, run, lines)


def soup(options: SoupOptions) -> None:
    """Average the weights of several fine-tuned models of one architecture."""
    from robustft.ensemble.soup import greedy_soup, uniform_soup
    from robustft.models import save_classifier

    device = processes.join(runs.choose_device(options.device))
    run, models = pairs.open_several(options, device)
    suite = _suite(options, run, device)
    rebuild = (run.clip.tokenizer, run.templates) if run.own_text else None
    if options.greedy and not run.train.classnames:
        raise InputError(
            f"--greedy: got it with the captions of {run.train.name}, expected classes, or "
            "--no-greedy"
        )
    if options.greedy:
        val = runs.load_split(run.options, "val", run.clip.preprocess_val)
        made, recipe = greedy_soup(models, lambda one: suite.collect(one, val), rebuild=rebuild)
        taken = [options.finetuned[i] for i in recipe.ingredients]
        print(f"{recipe}: {', '.join(taken)}")
    else:
        made, taken = uniform_soup(models, rebuild=rebuild), options.finetuned
    target = run.folder / "soup.safetensors"
    if processes.main():
        save_classifier(target, made, metadata={"method": "soup", "ingredients": taken})
    method = "greedy-soup" if options.greedy else "uniform-soup"
    outputs, recalls = suite.outputs(made), suite.retrieve(made)
    lines = runs.lines_of(suite, outputs, recalls, method=method, seed=run.options.seed)
    _end(options, run, lines, target)


def vrf(options: VRFOptions) -> None:
    """Weigh the two models sample by sample, by the distance to the zero-shot failures."""
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
    device = processes.join(runs.choose_device(options.device))
    run = _open(options, device, "vrf")
    suite = _suite(options, run, device)
    val = runs.load_split(run.options, "val", run.clip.preprocess_val)
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
        who = {**_identity(run), **more, "selected": point is chosen}
        distances = vrf_distances(point, before=before, after=after)
        lines += vrf_lines(point, suite, distances, before=before, after=after, val=val, **who)
        # The ratio is VRF's premise: against the distance to the failures.
        if point is chosen and options.bank == "failures":
            ratios = ratio_lines(distances, suite, before=before, after=after, **_identity(run))
    lines += ratios
    target = run.folder / "vrf.safetensors"
    if processes.main():
        chosen.save(target)
        if options.export is not None:
            chosen.export(options.export, *models, suite.classnames)
    _end(options, run, lines, target, options.export)


def _end(
    options: EnsembleOptions, run: runs.Run, lines: list[dict[str, Any]], *written: Path | None
) -> None:
    """Record an ensemble's result lines, and say what was written and what is next."""
    results = run.folder / runs.RESULTS
    runs.record(lines, results, options.results_db)
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


def _suite(options: EnsembleOptions, run: runs.Run, device: str) -> Any:
    root = roots.root_of(run.options.data_location)
    if getattr(options, "run", None) is not None:
        root = options.data_location or root
    options = roots.rooted(options, root)
    suite = runs.make_suite(
        run,
        pairs.asked_sets(options, run),
        device,
        run.folder / runs.RESULTS,
        options.results_db,
        batch_size=options.batch_size,
        workers=options.workers,
        precision=options.precision,
        store=_kept(options),
    )
    pairs.check_text(run, suite)
    return suite


def _say_left_out(suite: Any) -> None:
    """Outputs are mixed class by class: sets with captions have none."""
    for name in suite.captioned:
        print(f"{name}: has captions and no classes, so it is left out")


def _kept(options: EnsembleOptions) -> Any:
    """The store that --feature-store names, or None."""
    spec = getattr(options, "feature_store", stores.OFF)
    return stores.opened(None if spec == "on" else spec)


def _identity(run: runs.Run) -> dict[str, Any]:
    """The fields of a result line that say which run an ensemble is built on."""
    return {"base": run.base, "seed": run.options.seed}


_WITHOUT_RUN = ("zeroshot", "finetuned", "model", "data", "template", "seed", "out")


def _open(options: PairOptions, device: str, ensemble: str) -> runs.Run:
    """The run to ensemble, if its method's result is one for this ensemble; or any two models."""
    if options.run is None:
        if options.zeroshot is None and options.finetuned is None:
            raise InputError(
                "--run: got nothing, expected the folder of a training run, or --zeroshot and "
                "--finetuned"
            )
        return _suited(pairs.open_pair(options, device), ensemble)
    for name in _WITHOUT_RUN:
        if (value := getattr(options, name)) is not None:
            raise InputError(f"{flag(name)}: got {value!r} beside --run, expected one of them")
    run = runs.open_run(options.run, device)
    runs.check_ensemble(run, ensemble)
    return _suited(run, ensemble)


def _suited(run: runs.Run, ensemble: str) -> runs.Run:
    """The run itself. Errors: InputError where its data have no classes and the ensemble needs
    some."""
    if not runs.suits(run.train, ensemble):
        raise InputError(
            f"{ensemble}: got the captions of {run.train.name}, expected data with classes "
            "(wise-ft takes both)"
        )
    return run
