"""Ensembles of a zero-shot and a fine-tuned model on a suite: every α, or VRF's own weights.

What is chosen is chosen on the validation split; the other points of a curve are recorded with
selected = false.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from robustft.accuracy import Predictions, correct
from robustft.data.datasets import ImageDataset
from robustft.ensemble.calibrate import matching_temperature
from robustft.ensemble.output import output_ensemble
from robustft.ensemble.select import Choice, select_alpha, select_output_alpha
from robustft.ensemble.sweep import sweep_outputs
from robustft.ensemble.two_heads import same_encoder
from robustft.ensemble.vrf import VRF
from robustft.ensemble.wise_ft import wise_ft
from robustft.evaluate.collect import Outputs, merge_classes
from robustft.evaluate.metrics import predictions
from robustft.evaluate.ratio import ratio_curve
from robustft.evaluate.retrieval import RecallChoice, Recalls, select_by_recall
from robustft.evaluate.samples import Weighing
from robustft.evaluate.suite import Record, Suite
from robustft.models import Classifier
from robustft.progress import each

ByName = Mapping[str, Outputs]


def wise_ft_curve(
    suite: Suite,
    zero_shot: Classifier,
    fine_tuned: Classifier,
    val: ImageDataset,
    alphas: Sequence[float],
    *,
    rebuild: tuple[Any, Sequence[Any]] | None = None,
    **identity: Any,
) -> tuple[list[Record], Choice | RecallChoice, Classifier]:
    """Result lines of WiSE-FT at every α, the choice among them on `val`, and the classifier there.

    rebuild: as for `wise_ft`; identity: `base` and `seed` of the lines.
    """

    def at(alpha: float) -> Classifier:
        return wise_ft(zero_shot, fine_tuned, alpha, rebuild=rebuild)

    lines, choice, _ = weight_curve(suite, at, val, alphas, method="wise-ft", **identity)
    return lines, choice, at(choice.alpha)


def weight_curve(
    suite: Suite,
    at: Callable[[float], Classifier],
    val: ImageDataset,
    alphas: Sequence[float],
    **identity: Any,
) -> tuple[list[Record], Choice | RecallChoice, dict[str, Outputs]]:
    """Result lines of the model that `at` gives for every α, the choice among them on `val` (by
    accuracy, or where it has captions by mean recall), and the suite's outputs there.

    identity: `method`, `base` and `seed` of the lines.
    """
    lines: dict[float, list[Record]] = {}
    on_val: dict[float, Outputs] = {}
    recall_on_val: dict[float, Recalls] = {}
    found: dict[float, dict[str, Recalls]] = {}
    best, kept = -1.0, dict[float, dict[str, Outputs]]()  # the α best so far: one, but for ties
    # One model at a time: eleven of them may not fit in memory.
    for a in each(alphas, "α", len(alphas), "model"):
        model = at(a)
        who = {"alpha": a, "selected": False, **identity}
        outputs = suite.outputs(model)
        found[a] = suite.retrieve(model)
        lines[a] = suite.records(outputs, **who) + suite.retrieval_records(found[a], **who)
        if val.classnames:
            on_val[a] = suite.collect(model, val)
            score = float(correct(on_val[a].logits, on_val[a].labels).sum())
        else:
            recall_on_val[a] = suite.retrieve_in(model, val)
            score = recall_on_val[a].mean
        if score > best:
            best, kept = score, {}
        if score == best:
            kept[a] = outputs
    choice = select_alpha(on_val) if val.classnames else select_by_recall(recall_on_val)
    who = {"alpha": choice.alpha, "selected": True, **identity}
    lines[choice.alpha] = suite.records(kept[choice.alpha], **who)
    lines[choice.alpha] += suite.retrieval_records(found[choice.alpha], **who)
    if len(alphas) > 1:
        lines[choice.alpha] = _chosen(lines[choice.alpha], val)
    return [line for group in lines.values() for line in group], choice, kept[choice.alpha]


def output_curve(
    suite: Suite,
    zero_shot: Classifier,
    fine_tuned: Classifier,
    val: ImageDataset,
    alphas: Sequence[float],
    *,
    before: ByName,
    after: ByName,
    calibrate: bool = False,
    space: Literal["probability", "logit"] = "probability",
    **identity: Any,
) -> tuple[list[Record], Choice]:
    """Result lines of output ensembling at every α, and the choice among them on `val`.

    before, after: the suite's outputs of the two models; space: what is mixed, probabilities
    (method "ose") or logits ("lse"); calibrate: give each model the temperature at which its
    confidence on `val` is its accuracy ("calibrated-ose", "calibrated-lse").
    """
    plain, tuned = on_both(suite, zero_shot, fine_tuned, val)
    t_ft, t_zs = (
        matching_temperature(out.logits, out.labels) if calibrate else 1.0 for out in (tuned, plain)
    )
    choice = select_output_alpha(
        tuned,
        plain,
        alphas=alphas,
        temperature_finetuned=t_ft,
        temperature_zeroshot=t_zs,
        space=space,
    )
    method = "calibrated-" * calibrate + ("ose" if space == "probability" else "lse")
    found = {
        name: sweep_outputs(
            out.logits,
            before[name].logits,
            alphas,
            labels=out.labels,
            class_subset=out.class_subset,
            temperature_finetuned=t_ft,
            temperature_zeroshot=t_zs,
            space=space,
        )
        for name, out in after.items()
    }
    lines: list[Record] = []
    for number, a in enumerate(alphas):
        who = {"method": method, "alpha": a, "selected": a == choice.alpha, **identity}
        at = {name: points[number] for name, points in found.items()}

        def scores(name: str, a: float = a) -> Tensor:
            return output_ensemble(
                after[name].logits,
                before[name].logits,
                a,
                temperature_finetuned=t_ft,
                temperature_zeroshot=t_zs,
                space=space,
                class_subset=after[name].class_subset,
                log=True,
            )

        mine = suite.records_of(after, at, scores, **who)
        lines += _chosen(mine, val) if who["selected"] and len(alphas) > 1 else mine
    return lines, choice


def fit_vrf(
    estimator: VRF,
    suite: Suite,
    zero_shot: Classifier,
    fine_tuned: Classifier,
    train: ImageDataset,
    val: ImageDataset,
) -> VRF:
    """Fit a VRF on the training split, choosing on `val`; both with the evaluation transform."""
    plain, tuned = on_both(suite, zero_shot, fine_tuned, train)
    val_plain, val_tuned = on_both(suite, zero_shot, fine_tuned, val)
    return estimator.fit_outputs(tuned, plain, val_finetuned=val_tuned, val_zeroshot=val_plain)


def vrf_sweep(
    fitted: VRF, neighbors: Sequence[tuple[float, int | None]], plain: Outputs, tuned: Outputs
) -> tuple[VRF, list[VRF]]:
    """A fitted VRF with every (p, k), and the one with the highest accuracy on the validation
    outputs of the zero-shot model, `plain`, and of the fine-tuned one; of equals the first."""
    if len(neighbors) == 1:
        return fitted, [fitted]
    points = [
        fitted.with_neighbor(p=p, k=k, val_finetuned=tuned, val_zeroshot=plain)
        for p, k in neighbors
    ]

    def hits(point: VRF) -> int:
        features = point.features_of(tuned, plain)
        scores = point.predict_proba(features, tuned.logits, plain.logits, log=True)
        return int(correct(scores, tuned.labels).sum())

    return max(points, key=hits), points


def vrf_distances(estimator: VRF, *, before: ByName, after: ByName) -> dict[str, Tensor]:
    """A fitted VRF's distance of every sample of a suite, by the set's name; before, after: the
    suite's outputs of the zero-shot and of the fine-tuned model."""
    return {
        name: estimator.distance(estimator.features_of(out, before[name]))
        for name, out in after.items()
    }


def vrf_lines(
    estimator: VRF,
    suite: Suite,
    distances: Mapping[str, Tensor],
    *,
    before: ByName,
    after: ByName,
    val: ImageDataset,
    **identity: Any,
) -> list[Record]:
    """Result lines of a fitted VRF, with its a and b; distances, before, after: as for
    `vrf_distances`; val: the split that chose, where it did."""
    found: dict[str, Predictions] = {}
    weighing: dict[str, Weighing] = {}

    def mixed(name: str) -> Tensor:
        out, z = after[name], before[name].logits
        subset = out.class_subset
        return estimator.mix(distances[name], out.logits, z, class_subset=subset, log=True)

    for name in suite.entries:
        out, first = after[name], before[name]
        subset = out.class_subset
        distance = distances[name]
        found[name] = predictions(mixed(name), out.labels, subset)
        if identity.get("selected", True):
            weighing[name] = Weighing(
                distance.cpu(),
                estimator.weight_at(distance).cpu(),
                predictions(out.logits, out.labels, subset),
                predictions(first.logits, first.labels, subset),
            )
    who = {"method": estimator.name, **identity}
    lines = suite.records_of(after, found, mixed, weighing=weighing, **who)
    lines = [{**line, "a": estimator.a_, "b": estimator.b_} for line in lines]
    return lines if estimator.selection_ is None else _chosen(lines, val)


def ratio_lines(
    distances: Mapping[str, Tensor],
    suite: Suite,
    *,
    before: ByName,
    after: ByName,
    **identity: Any,
) -> list[Record]:
    """Accuracy ratios against a VRF's distances, on all ID and OOD sets together; distances,
    before, after: as for `vrf_distances`."""
    names = [name for name, entry in suite.entries.items() if entry.role in ("id", "ood")]
    if not names:
        return []

    def scores(outputs: ByName) -> Tensor:
        return torch.cat([_within(outputs[name], after[name].class_subset) for name in names])

    curve = ratio_curve(
        torch.cat([distances[name].cpu() for name in names]),
        scores(after),
        scores(before),
        torch.cat([after[name].labels for name in names]),
    )
    return [{"role": "ratio", **identity, **line} for line in curve]


def outputs_of_both(
    suite: Suite, zero_shot: Classifier, fine_tuned: Classifier
) -> tuple[dict[str, Outputs], dict[str, Outputs]]:
    """The suite's outputs of the zero-shot and of the fine-tuned model, in one pass over the
    images. Where that is a linear probe the encoder runs once: the zero-shot head takes the same
    features."""
    if not same_encoder(zero_shot, fine_tuned):
        before, after = suite.outputs_each([zero_shot, fine_tuned])
        return before, after
    after = suite.outputs(fine_tuned)
    before = {
        name: out if suite.entries[name].role == "forgetting" else _with_head(zero_shot, out)
        for name, out in after.items()
    }
    return before, after


def on_both(
    suite: Suite, zero_shot: Classifier, fine_tuned: Classifier, data: ImageDataset
) -> tuple[Outputs, Outputs]:
    """As `outputs_of_both`, on data that are not part of the suite."""
    if not same_encoder(zero_shot, fine_tuned):
        plain, tuned = suite.collect_each([zero_shot, fine_tuned], data)
        return plain, tuned
    tuned = suite.collect(fine_tuned, data)
    return _with_head(zero_shot, tuned), tuned


def _chosen(lines: Sequence[Record], val: ImageDataset) -> list[Record]:
    """Lines of what was chosen, which say on what."""
    on = {"dataset": val.name, "split": val.split, "n": len(val)}
    return [{**line, "chosen_on": on} for line in lines]


@torch.no_grad()
def _with_head(classifier: Classifier, outputs: Outputs) -> Outputs:
    """The outputs of another model with the same encoder."""
    weight = classifier.head.weight
    logits = classifier.logits(outputs.features.to(weight.device))
    logits = merge_classes(logits, outputs.merged)
    return dataclasses.replace(outputs, logits=logits.float().cpu())


def _within(out: Outputs, subset: Tensor | None) -> Tensor:
    """Logits with -Inf in the classes that the set does not have."""
    if subset is None:
        return out.logits
    logits = torch.full_like(out.logits, -math.inf)
    logits[:, subset] = out.logits[:, subset]
    return logits
