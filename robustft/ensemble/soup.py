"""Model soups (arXiv 2203.05482): the mean of several fine-tuned models' weights is one model.

    θ = 1/K · Σ_k θ_k

The models begin from one pre-trained model and differ in hyper-parameters or seed. The uniform soup
takes all of them. The greedy soup goes through them from the best validation accuracy down, and
keeps a model if the mean with it is no worse than the mean without.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from robustft.accuracy import NONE, correct, predict
from robustft.ensemble._checks import (
    HasSplit,
    check_labels,
    check_logits,
    check_same_classes,
    check_selection_split,
)
from robustft.ensemble.select import check_same_samples
from robustft.errors import InputError

if TYPE_CHECKING:
    from robustft.models.heads import Classifier

Rebuild = tuple[Any, Sequence[Any]]


@dataclass(frozen=True)
class Recipe:
    """What went into a greedy soup.

    ingredients: the numbers of the models taken, in order; accuracy: of the soup on the n
    validation samples; single: the accuracy of each model alone, None for one without a prediction.
    """

    ingredients: tuple[int, ...]
    accuracy: float
    single: tuple[float | None, ...]
    n: int

    def __str__(self) -> str:
        """The recipe in one line."""
        best = max(score for score in self.single if score is not None)
        return (
            f"{len(self.ingredients)} of {len(self.single)} models: {100 * self.accuracy:.1f} % of "
            f"{self.n} validation samples, the best model alone {100 * best:.1f} %"
        )


def uniform_soup(
    classifiers: Sequence[Classifier], *, rebuild: Rebuild | None = None
) -> Classifier:
    """A new classifier with the mean of all weights; one model's soup has its bits.

    Args:
        classifiers: of one architecture and one list of classes.
        rebuild: (tokenizer, templates) re-makes the head from the mean text tower, as for
            `wise_ft`; without it the heads are averaged like any other weight.

    Errors: InputError for no classifier, other classes, or another architecture.
    """
    _check(classifiers)
    soup = copy.deepcopy(classifiers[0])
    for count, more in enumerate(classifiers[1:], 2):
        _stir(soup, more, count)
    return _served(soup, rebuild)


def greedy_soup(
    classifiers: Sequence[Classifier],
    evaluate: Callable[[Classifier], HasSplit],
    *,
    rebuild: Rebuild | None = None,
) -> tuple[Classifier, Recipe]:
    """The greedy soup and its recipe. Its validation accuracy is never below its best ingredient's.

    Args:
        classifiers, rebuild: as for `uniform_soup`. Of equally accurate models the earlier one is
            tried first.
        evaluate: a classifier's outputs on one ID validation split (`robustft.evaluate.collect`).

    A model that predicts nothing (its weights are NaN) is left out. Errors: InputError as for
    `uniform_soup`, for outputs of a test split, or where no model has a prediction.
    """
    _check(classifiers)
    first = evaluate(classifiers[0])

    def accuracy(classifier: Classifier, outputs: HasSplit | None = None) -> float | None:
        found = evaluate(classifier) if outputs is None else outputs
        check_selection_split("evaluate", found)
        check_logits("logits", found.logits)
        check_labels("labels", found.labels, len(found.logits), found.logits.shape[1])
        check_same_samples(found, first, "the outputs of a model", "those of the first")
        if bool((predict(found.logits) == NONE).all()):
            return None
        return float(correct(found.logits, found.labels).double().mean())

    single = [accuracy(classifiers[0], first), *map(accuracy, classifiers[1:])]
    order = sorted(
        (i for i, score in enumerate(single) if score is not None),
        key=lambda i: (-(single[i] or 0.0), i),
    )
    if not order:
        raise InputError("classifiers: got none with a prediction, expected at least one")
    # Of rebuilt heads the plain mean is kept beside: a rebuilt head is no ingredient.
    mean = copy.deepcopy(classifiers[order[0]])
    soup, best = mean, single[order[0]] or 0.0
    taken = [order[0]]
    for i in order[1:]:
        tried = copy.deepcopy(mean)
        _stir(tried, classifiers[i], len(taken) + 1)
        served = _served(copy.deepcopy(tried) if rebuild else tried, rebuild)
        score = accuracy(served)
        if score is not None and score >= best:
            mean, soup, best = tried, served, score
            taken.append(i)
    return soup, Recipe(tuple(taken), best, tuple(single), len(first.labels))


def _check(classifiers: Sequence[Classifier]) -> None:
    if len(classifiers) == 0:
        raise InputError("classifiers: got none, expected at least one")
    for number, one in enumerate(classifiers[1:], 1):
        known = classifiers[0].classnames
        check_same_classes(f"classifiers[{number}]", one.classnames, "classifiers[0]", known)


def _stir(soup: Classifier, more: Classifier, count: int) -> None:
    """Turn the mean of `count` - 1 models into that of `count`."""
    from robustft.models.weights import interpolate

    soup.load_state_dict(interpolate(soup.state_dict(), more.state_dict(), 1.0 / count))


def _served(soup: Classifier, rebuild: Rebuild | None) -> Classifier:
    return soup if rebuild is None else soup.rebuild_head(*rebuild)
