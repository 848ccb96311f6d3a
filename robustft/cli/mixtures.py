"""The ensembles of a comparison, by name: what they suit, and their result lines.

Whatever is chosen, α, a soup's ingredients, temperatures, is chosen on ID validation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from robustft.errors import InputError

if TYPE_CHECKING:
    from robustft.data.datasets import ImageDataset
    from robustft.evaluate.collect import Outputs
    from robustft.evaluate.suite import Record, Suite
    from robustft.models import Classifier

#: Each with the one that a method names where it suits (`Method.ensembles`).
_SUITS = {
    "wise-ft": "wise-ft",
    "ose": "ose",
    "vrf": "vrf",
    "lse": "ose",
    "calibrated-ose": "ose",
    "calibrated-lse": "ose",
    "greedy-soup": "wise-ft",
    "uniform-soup": "wise-ft",
    "post-tpgm": "wise-ft",
}
NAMES = tuple(_SUITS)
#: What is built where nobody names ensembles.
DEFAULT = ("wise-ft", "ose", "vrf")
#: Those that are made of the models of all learning rates.
SOUPS = frozenset(("greedy-soup", "uniform-soup"))


def chosen(asked: Sequence[str], methods: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The ensembles of each method.

    asked: "all", "none", NAME for every method that it suits, METHOD.NAME; nothing for DEFAULT.
    Errors: InputError for an unknown one, or one that does not suit the method named.
    """
    from robustft.methods import METHODS

    if "none" in asked and len(asked) > 1:
        raise InputError("--ensembles: got none beside others, expected none or some")
    found: dict[str, dict[str, None]] = {method: {} for method in methods}
    for text in asked or DEFAULT:
        method, dot, name = text.rpartition(".")
        names = NAMES if name == "all" else () if text == "none" else (name,)
        if not set(names) <= set(NAMES):
            raise InputError(
                f"--ensembles: got {text!r}, expected all, none, or some of {', '.join(NAMES)}"
            )
        if dot and method not in methods:
            raise InputError(
                f"--ensembles: got {text!r}, expected a method that is compared: "
                f"{', '.join(methods)}"
            )
        for one in names:
            suited = [m for m in methods if _SUITS[one] in METHODS[m].ensembles]
            if dot and method not in suited and name != "all":
                fit = [n for n in NAMES if _SUITS[n] in METHODS[method].ensembles]
                raise InputError(
                    f"--ensembles: got {text!r}, expected for {method} {', '.join(fit) or 'none'}"
                )
            for each in suited:
                if not dot or each == method:
                    found[each][one] = None
    return {method: tuple(names) for method, names in found.items()}


@dataclass(frozen=True)
class Pair:
    """A seed's zero-shot and fine-tuned model, with all that ensembles of them are made with.

    train, val: with the evaluation transform; before, after: the suite's outputs of the two;
    every_rate: the method's models of all learning rates, loaded when called.
    """

    method: str
    seed: int
    suite: Suite
    train: ImageDataset
    val: ImageDataset
    zero_shot: Classifier
    tuned: Classifier
    before: dict[str, Outputs]
    after: dict[str, Outputs]
    every_rate: Callable[[], list[Classifier]]
    batch_size: int
    alphas: Sequence[float]

    @property
    def rebuild(self) -> tuple[Any, Sequence[Any]] | None:
        """What mixed weights re-make their head with, where the method's comes from its tower."""
        from robustft.methods import METHODS

        own_text = METHODS[self.method].head_from_text
        return (self.suite.clip.tokenizer, self.suite.templates) if own_text else None

    @property
    def identity(self) -> dict[str, Any]:
        return {"base": self.method, "seed": self.seed}


def lines(name: str, pair: Pair) -> tuple[list[Record], str]:
    """The result lines of an ensemble, and what was chosen in one line."""
    if name == "wise-ft":
        return _wise_ft(pair)
    if name == "vrf":
        return _vrf(pair)
    if name in SOUPS:
        return _soup(name, pair)
    if name == "post-tpgm":
        return _tpgm(pair)
    return _outputs(name, pair)


def _wise_ft(pair: Pair) -> tuple[list[Record], str]:
    from robustft.cli import before_after
    from robustft.ensemble import wise_ft
    from robustft.evaluate.curves import weight_curve

    who = {"method": "wise-ft", **pair.identity}
    at = partial(wise_ft, pair.zero_shot, pair.tuned, rebuild=pair.rebuild)
    found, choice, mixed = weight_curve(pair.suite, at, pair.val, pair.alphas, **who)
    who["alpha"] = choice.alpha
    return found + before_after.geometry_lines(pair.suite, pair.before, mixed, **who), str(choice)


def _outputs(name: str, pair: Pair) -> tuple[list[Record], str]:
    from robustft.evaluate.curves import output_curve

    space: Literal["probability", "logit"] = "logit" if name.endswith("lse") else "probability"
    found, choice = output_curve(
        pair.suite,
        pair.zero_shot,
        pair.tuned,
        pair.val,
        pair.alphas,
        before=pair.before,
        after=pair.after,
        calibrate=name.startswith("calibrated-"),
        space=space,
        **pair.identity,
    )
    return found, str(choice)


def _vrf(pair: Pair) -> tuple[list[Record], str]:
    from robustft.ensemble import VRF
    from robustft.evaluate.curves import fit_vrf, ratio_lines, vrf_distances, vrf_lines

    fitted = fit_vrf(VRF(), pair.suite, pair.zero_shot, pair.tuned, pair.train, pair.val)
    both = {"before": pair.before, "after": pair.after}
    distances = vrf_distances(fitted, **both)
    found = vrf_lines(fitted, pair.suite, distances, **both, val=pair.val, **pair.identity)
    found += ratio_lines(distances, pair.suite, **both, **pair.identity)
    return found, f"a={fitted.a_:.4g}, b={fitted.b_:.4g}, k={fitted.k_}"


def _soup(name: str, pair: Pair) -> tuple[list[Record], str]:
    from robustft.ensemble import greedy_soup, uniform_soup

    models = pair.every_rate()
    if name == "uniform-soup":
        said, soup = f"{len(models)} models", uniform_soup(models, rebuild=pair.rebuild)
    else:
        soup, recipe = greedy_soup(
            models, lambda one: pair.suite.collect(one, pair.val), rebuild=pair.rebuild
        )
        said = str(recipe)
    return _model(name, soup, pair), said


def _tpgm(pair: Pair) -> tuple[list[Record], str]:
    from robustft.ensemble import tpgm

    projected, learnt = tpgm(
        pair.zero_shot, pair.tuned, pair.val, batch_size=pair.batch_size, seed=pair.seed
    )
    said = f"validation loss {learnt.losses[0]:.3f} to {learnt.losses[-1]:.3f}"
    return _model("post-tpgm", projected, pair), said


def _model(name: str, classifier: Classifier, pair: Pair) -> list[Record]:
    """The lines of one model made of others."""
    from robustft.cli import before_after

    outputs, who = pair.suite.outputs(classifier), {"method": name, **pair.identity}
    return pair.suite.records(outputs, **who) + before_after.geometry_lines(
        pair.suite, pair.before, outputs, **who
    )
