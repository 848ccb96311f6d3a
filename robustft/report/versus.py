"""Every method against one of them on the same images of each set, seed by seed."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from robustft.evaluate.paired import bootstrap_difference, mcnemar
from robustft.report.names import Row, in_order
from robustft.report.outcomes import Shared

_REFERENCES: tuple[Row, ...] = (("ft", None), ("zero-shot", None))


@dataclass(frozen=True)
class Versus:
    """A method against the reference on one set.

    n: images, gained: those that it alone has right, lost: those that the reference alone has
    right, all over the seeds; difference of the accuracies, low and high, the ends of its 95 %
    interval, in points; p: of McNemar's test; adjusted: by Holm's method over the whole table.

    Each seed is a pair of models on the same images. Over seeds differences and ends are means,
    which makes the interval as wide as that of seeds that share all their images; p is twice the
    mean of the seeds', which holds however they depend on one another (arXiv 1212.4966).
    """

    row: Row
    seeds: int
    n: int
    gained: int
    lost: int
    difference: float
    low: float
    high: float
    p: float
    adjusted: float = 1.0


@dataclass(frozen=True)
class SetVersus:
    """All methods against the reference on one set."""

    dataset: str
    role: str
    rows: list[Versus]


def reference_of(sets: Sequence[Shared]) -> Row | None:
    """What methods are compared with: plain fine-tuning, else the zero-shot model."""
    seen = {row for shared in sets for row in shared.said}
    return next((row for row in _REFERENCES if row in seen), None)


def against(sets: Sequence[Shared], reference: Row) -> list[SetVersus]:
    """Every other method against the reference, set by set. Sets in which an image may be several
    times are left out: the tests are for images that are independent of each other."""
    by_set: dict[tuple[str, str], list[Shared]] = {}
    for shared in sets:
        if reference in shared.said and not shared.repeated:
            by_set.setdefault((shared.dataset, shared.role), []).append(shared)
    found = []
    for (dataset, role), seeds in by_set.items():
        rows = in_order(row for shared in seeds for row in shared.said if row != reference)
        if rows:
            lines = [_versus(row, reference, seeds) for row in rows]
            found.append(SetVersus(dataset, role, lines))
    adjusted = iter(holm([line.p for one in found for line in one.rows]))
    return [
        replace(one, rows=[replace(line, adjusted=next(adjusted)) for line in one.rows])
        for one in found
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """Each p adjusted for their number (Holm, Scandinavian Journal of Statistics 6, 1979): those
    below a level hold together at that level."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [1.0] * len(p_values), 0.0
    for place, i in enumerate(order):
        highest = max(highest, min(1.0, p_values[i] * (len(p_values) - place)))
        adjusted[i] = highest
    return adjusted


def _versus(row: Row, reference: Row, seeds: Iterable[Shared]) -> Versus:
    pairs = [(s.said[row].right, s.said[reference].right) for s in seeds if row in s.said]
    tests = [mcnemar(*pair) for pair in pairs]
    ends = [bootstrap_difference(*pair) for pair in pairs]
    mean = statistics.fmean(test.p for test in tests)
    return Versus(
        row,
        seeds=len(pairs),
        n=sum(test.n for test in tests),
        gained=sum(test.first_only for test in tests),
        lost=sum(test.second_only for test in tests),
        difference=100 * statistics.fmean(end.value for end in ends),
        low=100 * statistics.fmean(end.low for end in ends),
        high=100 * statistics.fmean(end.high for end in ends),
        p=mean if len(tests) == 1 else min(1.0, 2 * mean),
    )
