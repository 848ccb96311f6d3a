"""One number of several: what accuracies in and out of distribution say together.

Accuracies are shares in [0, 1]; a point is a pair of an ID and an OOD accuracy, of one model.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from robustft.errors import InputError

Point = tuple[float, float]


def harmonic_mean(values: Sequence[float]) -> float:
    """n / Σ 1/v, or 0 where one of the values is 0: of the accuracies on base and novel classes,
    as in CoCoOp (arXiv 2203.05557).

    Errors: InputError for no values, or one that is not in [0, 1].
    """
    if not values:
        raise InputError("values: got none, expected at least one")
    for value in values:
        _share("values", value)
    return statistics.harmonic_mean(values)


def forgetting(before: Mapping[str, float], after: Mapping[str, float]) -> float | None:
    """By how much accuracy fell from the zero-shot model's, `before`, the mean over the data sets
    of both by name; None without one. Errors: none."""
    drops = [value - after[name] for name, value in before.items() if name in after]
    return statistics.fmean(drops) if drops else None


@dataclass(frozen=True)
class Baseline:
    """The OOD accuracy that an ID accuracy lets expect: logit(OOD) = slope·logit(ID) + intercept.

    Effective robustness (Taori et al., arXiv 2007.00644) is what a model has beyond that."""

    slope: float
    intercept: float

    @classmethod
    def fit(cls, points: Iterable[Point]) -> Baseline:
        """By least squares through models of ordinary training: two or more, of ID accuracies that
        differ. Points with an accuracy of 0 or 1, whose logit is infinite, are left out.

        Errors: InputError for an accuracy outside [0, 1], or fewer points.
        """
        shares = [(_share("points", x), _share("points", y)) for x, y in points]
        finite = [(x, y) for x, y in shares if 0 < x < 1 and 0 < y < 1]
        if len({x for x, _ in finite}) < 2:
            raise InputError(
                f"points: got {len(finite)} models with accuracies between 0 and 1, expected at "
                "least two, of different ID accuracies"
            )
        line = statistics.linear_regression(
            [_logit(x) for x, _ in finite], [_logit(y) for _, y in finite]
        )
        return cls(line.slope, line.intercept)

    def effective_robustness(self, point: Point) -> float:
        """The OOD accuracy beyond the expected one, in [-1, 1]."""
        inside, outside = (_share("point", value) for value in point)
        expected = self.slope * _logit(inside) + self.intercept
        return outside - 0.5 * (1 + math.tanh(0.5 * expected))


def front(points: Iterable[Point]) -> list[Point]:
    """The points that no other one equals or betters in both accuracies, by rising ID accuracy."""
    best: list[Point] = []
    for inside, outside in sorted(set(points), reverse=True):
        if not best or outside > best[-1][1]:
            best.append((inside, outside))
    return best[::-1]


def hypervolume(points: Iterable[Point], reference: Point = (0.0, 0.0)) -> float:
    """The area of what some point equals or betters in both accuracies, above the reference point:
    the hypervolume (Zitzler and Thiele 1998) of two objectives. Above the origin it is a share of
    the square of all accuracies. Errors: none."""
    left, floor = reference
    area = 0.0
    for inside, outside in front(points):
        if inside > left and outside > floor:
            area += (inside - left) * (outside - floor)
            left = inside
    return area


def curve_area(points: Iterable[Point]) -> float:
    """The area under an ID–OOD curve, such as WiSE-FT's over α, above the origin: between
    neighbours on the front the OOD accuracy falls along a straight line, where for `hypervolume`
    it falls at once. None of the curve's other points count. Errors: none."""
    best = front(points)
    if not best:
        return 0.0
    area = best[0][0] * best[0][1]
    for (x, y), (right, below) in itertools.pairwise(best):
        area += (right - x) * (y + below) / 2
    return area


def _share(name: str, value: float) -> float:
    if not 0.0 <= value <= 1.0:  # NaN is outside
        raise InputError(f"{name}: got {value!r}, expected an accuracy from 0 to 1")
    return value


def _logit(share: float) -> float:
    if share in (0.0, 1.0):
        return math.copysign(math.inf, share - 0.5)
    return math.log(share / (1 - share))
