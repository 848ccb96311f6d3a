"""`robustft wise-ft` and `robustft vrf`: ensembles of a run's model with its zero-shot model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustft.cli import runs
from robustft.cli.options import setting
from robustft.errors import InputError

if TYPE_CHECKING:
    from robustft.data.base import ImageDataset
    from robustft.evaluate.suite import Suite

_GRID = [round(0.1 * i, 1) for i in range(11)]


@dataclass(frozen=True)
class WiseFTOptions:
    """Options of `robustft wise-ft`."""

    run: Path | None = setting(None, "Run folder of the fine-tuned model.")
    alpha: list[float] = setting(_GRID, "Weights of the fine-tuned model to try.")
    space: str = setting(
        "weights",
        "What is mixed: weights (WiSE-FT) or outputs (OSE, probabilities).",
        choices=("weights", "outputs"),
    )
    eval_datasets: list[str] = setting([], "Datasets [default: the run's own test split].")
    results_db: Path | None = setting(None, "Also append result lines to this file.")
    device: str = setting("auto", "auto, cpu or cuda.")


@dataclass(frozen=True)
class VRFOptions:
    """Options of `robustft vrf`."""

    run: Path | None = setting(None, "Run folder of the fine-tuned model.")
    p: float = setting(0.001, "k is this share of the failure set, at least 1.")
    k: int | None = setting(None, "k itself.")
    a: float | None = setting(None, "Distance of equal weights [default: by ID validation].")
    b: float | None = setting(None, "Width of the sigmoid [default: by ID validation].")
    squared: bool = setting(True, "Squared L2 distance, as published a and b expect.")
    calibrate: bool = setting(True, "Temperatures from ID validation.")
    eval_datasets: list[str] = setting([], "Datasets [default: the run's own test split].")
    results_db: Path | None = setting(None, "Also append result lines to this file.")
    device: str = setting("auto", "auto, cpu or cuda.")


def wise_ft(options: WiseFTOptions) -> None:
    """Mix zero-shot and fine-tuned model at every α; α is chosen on ID validation accuracy."""
    device = runs.choose_device(options.device)
    run = runs.open_run(_folder(options.run), device)
    suite = runs.make_suite(run, options.eval_datasets, device)
    val = runs.load_split(run.options, "val", run.clip.preprocess_val)
    if options.space == "weights":
        lines = _weight_space(run, suite, val, options.alpha, device)
    else:
        lines = _output_space(run, suite, val, options.alpha, device)
    runs.record(lines, run.folder / runs.RESULTS, options.results_db)


def _weight_space(
    run: runs.Run, suite: Suite, val: ImageDataset, alphas: list[float], device: str
) -> list[Any]:
    from robustft.ensemble.select import select_alpha
    from robustft.ensemble.wise_ft import wise_ft as interpolate
    from robustft.evaluate.collect import collect
    from robustft.models import save_classifier

    rebuild = (run.clip.tokenizer, run.templates) if retrains_text(run.options.method) else None

    def at(alpha: float) -> Any:
        return interpolate(run.zero_shot, run.fine_tuned, alpha, rebuild=rebuild)

    best = select_alpha({alpha: collect(at(alpha), val, device=device) for alpha in alphas}).alpha
    lines = []
    for alpha in alphas:
        identity = identify("wise-ft", run, alpha=alpha, selected=alpha == best)
        lines += suite.records(suite.outputs(at(alpha)), **identity)
    target = run.folder / "wise-ft.safetensors"
    save_classifier(target, at(best), metadata={"method": "wise-ft", "alpha": best})
    print(f"α={best:g} by ID validation; written: {target}")
    return lines


def _output_space(
    run: runs.Run, suite: Suite, val: ImageDataset, alphas: list[float], device: str
) -> list[Any]:
    from robustft.ensemble.output import output_ensemble
    from robustft.ensemble.select import select_output_alpha
    from robustft.evaluate.collect import collect

    tuned, plain = (collect(c, val, device=device) for c in (run.fine_tuned, run.zero_shot))
    best = select_output_alpha(tuned, plain, alphas=alphas).alpha
    fine_tuned, zero_shot = suite.outputs(run.fine_tuned), suite.outputs(run.zero_shot)
    lines = []
    for alpha in alphas:

        def scores(out: Any, name: str, alpha: float = alpha) -> Any:
            return output_ensemble(
                out.logits, zero_shot[name].logits, alpha, class_subset=out.class_subset
            )

        identity = identify("ose", run, alpha=alpha, selected=alpha == best)
        lines += suite.records(fine_tuned, scores, **identity)
    print(f"α={best:g} by ID validation")
    return lines


def vrf(options: VRFOptions) -> None:
    """Weigh the two models sample by sample, by the distance to the zero-shot failures."""
    from robustft.ensemble.vrf import VRF
    from robustft.evaluate.collect import collect

    device = runs.choose_device(options.device)
    run = runs.open_run(_folder(options.run), device)
    suite = runs.make_suite(run, options.eval_datasets, device)
    val = runs.load_split(run.options, "val", run.clip.preprocess_val)
    train = runs.load_split(run.options, "train", run.clip.preprocess_val)
    estimator = VRF(
        p=options.p,
        k=options.k,
        a=options.a,
        b=options.b,
        squared=options.squared,
        calibrate=options.calibrate,
    )
    tuned = [collect(run.fine_tuned, split, device=device) for split in (train, val)]
    plain = [collect(run.zero_shot, split, device=device) for split in (train, val)]
    estimator.fit_outputs(tuned[0], plain[0], val_finetuned=tuned[1], val_zeroshot=plain[1])
    zero_shot = suite.outputs(run.zero_shot)

    def scores(out: Any, name: str) -> Any:
        return estimator.predict_proba(
            out.features, out.logits, zero_shot[name].logits, class_subset=out.class_subset
        )

    lines = suite.records(suite.outputs(run.fine_tuned), scores, **identify("vrf", run))
    runs.record(lines, run.folder / runs.RESULTS, options.results_db)
    target = run.folder / "vrf.safetensors"
    estimator.save(target)
    print(f"written: {target}")


def retrains_text(method: str) -> bool:
    """Whether a method's head is made from its own text tower (and so is an ensemble's)."""
    return method in ("flyp", "r-adapter", "dive")


def identify(method: str, run: runs.Run, **more: Any) -> dict[str, Any]:
    """The fields that name an ensemble in a result line."""
    return {
        "method": method,
        "base": run.options.method,
        "alpha": None,
        "selected": True,
        "seed": run.options.seed,
        **more,
    }


def _folder(run: Path | None) -> Path:
    if run is None:
        raise InputError("--run: got nothing, expected the folder of a training run")
    return run
