"""Summaries of ID and OOD accuracies against counts by hand, NumPy's fit and published rows."""

import math

import numpy as np
import pytest

from robustft.errors import InputError
from robustft.evaluate.summary import (
    Baseline,
    curve_area,
    forgetting,
    front,
    harmonic_mean,
    hypervolume,
)

# VRF (arXiv 2411.06966), ViT-B/16, E2E-FT: (IN, mean OOD) of weight ensembling at α = 0, 0.1 … 1.
WSE = [
    *((0.683, 0.584), (0.729, 0.608), (0.764, 0.625), (0.789, 0.633), (0.805, 0.635)),
    *((0.817, 0.630), (0.824, 0.619), (0.825, 0.606), (0.825, 0.589), (0.821, 0.566)),
    (0.813, 0.537),
]


def test_the_front_is_what_nothing_betters():
    assert front(WSE) == [(0.805, 0.635), (0.817, 0.630), (0.824, 0.619), (0.825, 0.606)]
    assert front([(0.5, 0.5), (0.5, 0.5), (0.5, 0.4), (0.4, 0.5)]) == [(0.5, 0.5)]


def test_hypervolume_and_area_by_hand():
    points = [(0.5, 0.8), (0.7, 0.6), (0.9, 0.2), (0.6, 0.5), (0.1, 0.7)]
    # Steps: 0.5·0.8 + 0.2·0.6 + 0.2·0.2; lines: 0.5·0.8 + 0.2·0.7 + 0.2·0.4.
    assert hypervolume(points) == pytest.approx(0.56)
    assert curve_area(points) == pytest.approx(0.62)
    assert hypervolume(points, reference=(0.6, 0.4)) == pytest.approx(0.1 * 0.2)
    assert hypervolume(points, reference=(0.9, 0.0)) == 0.0
    assert hypervolume([(0.8, 0.6)]) == curve_area([(0.8, 0.6)]) == pytest.approx(0.48)
    assert hypervolume([]) == curve_area([]) == 0.0


def test_hypervolume_is_the_share_of_points_that_are_bettered():
    rng = np.random.default_rng(0)
    points = [tuple(p) for p in rng.random((12, 2)).round(3).tolist()]
    axis = (np.arange(2000) + 0.5) / 2000
    bettered = np.zeros((2000, 2000), dtype=bool)
    for x, y in points:
        bettered |= (axis[:, None] < x) & (axis[None] < y)
    assert hypervolume(points) == pytest.approx(bettered.mean(), abs=1e-3)


def test_effective_robustness_is_beyond_a_fit_in_logits():
    rng = np.random.default_rng(0)
    inside = rng.uniform(0.5, 0.85, 20)
    logit = np.log(inside / (1 - inside))
    outside = 1 / (1 + np.exp(-(0.8 * logit - 0.9 + rng.normal(0, 0.1, 20))))
    fitted = Baseline.fit([*zip(inside, outside, strict=True), (1.0, 0.9), (0.3, 0.0)])
    slope, intercept = np.polyfit(logit, np.log(outside / (1 - outside)), 1)
    assert (fitted.slope, fitted.intercept) == pytest.approx((slope, intercept))
    expected = 1 / (1 + math.exp(-(slope * math.log(0.7 / 0.3) + intercept)))
    assert fitted.effective_robustness((0.7, 0.65)) == pytest.approx(0.65 - expected)
    assert fitted.effective_robustness((1.0, 1.0)) == 0.0, "the fit's limit"
    for bad in (
        [(0.5, 0.4)],
        [(0.5, 0.4), (0.5, 0.3)],
        [(0.5, 0.4), (1.0, 0.9)],
        [(0.5, 40.0)] * 2,
    ):
        with pytest.raises(InputError, match="points: got"):
            Baseline.fit(bad)
    with pytest.raises(InputError, match="point: got nan"):
        fitted.effective_robustness((math.nan, 0.5))


def test_forgetting_is_the_mean_drop_over_the_sets_of_both():
    assert forgetting(
        {"a": 0.9, "b": 0.7, "c": 0.2}, {"a": 0.6, "b": 0.8, "d": 0.1}
    ) == pytest.approx(0.1)
    assert forgetting({"a": 0.9}, {}) is None


@pytest.mark.parametrize(
    ("base", "novel", "printed"),
    [  # CoCoOp (arXiv 2203.05557), table 1: CLIP, CoOp, CoCoOp; means of eleven sets, ImageNet
        (69.34, 74.22, 71.70),
        (82.69, 63.22, 71.66),
        (80.47, 71.69, 75.83),
        (72.43, 68.14, 70.22),
        (76.47, 67.88, 71.92),
        (75.98, 70.43, 73.10),
    ],
)
def test_published_harmonic_means(base, novel, printed):
    assert 100 * harmonic_mean([base / 100, novel / 100]) == pytest.approx(printed, abs=0.006)


def test_the_harmonic_mean_of_nothing_and_with_a_zero():
    assert harmonic_mean([0.5, 0.0]) == 0.0
    for bad in ([], [0.5, 1.5], [math.nan]):
        with pytest.raises(InputError, match="values: got"):
            harmonic_mean(bad)
