"""McNemar's test and the paired bootstrap against SciPy and against resampling itself."""

import numpy as np
import pytest
import torch

from robustft.errors import InputError
from robustft.evaluate.paired import bootstrap_difference, mcnemar


def hits(both, first_only, second_only, neither):
    """Right or wrong of two models with these counts, in a fixed shuffled order."""
    first = [True] * (both + first_only) + [False] * (second_only + neither)
    second = [True] * both + [False] * first_only + [True] * second_only + [False] * neither
    order = np.random.default_rng(0).permutation(len(first))
    return np.array(first)[order], np.array(second)[order]


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (3, 9), (12, 12), (24, 0), (7, 17)])
def test_few_disagreements_are_tested_exactly(b, c):
    stats = pytest.importorskip("scipy.stats")
    found = mcnemar(*hits(40, b, c, 11))
    assert (found.n, found.first_only, found.second_only) == (51 + b + c, b, c)
    assert found.difference == pytest.approx((b - c) / found.n)
    expected = stats.binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert found.p == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("b", "c"), [(25, 0), (10, 15), (59, 121), (121, 59), (40, 40), (41, 40)])
def test_many_disagreements_are_tested_by_chi_square(b, c):
    stats = pytest.importorskip("scipy.stats")
    found = mcnemar(*hits(300, b, c, 20))
    # What a 2 × 2 goodness of fit with Yates' correction gives for equal expectations.
    half = (b + c) / 2
    statistic = sum(max(abs(x - half) - 0.5, 0) ** 2 / half for x in (b, c))
    assert found.p == pytest.approx(stats.chi2.sf(statistic, 1), rel=1e-9)


def test_a_published_table():
    # Agresti, Categorical Data Analysis (1990), table 10.1: approval in two surveys of 1,600
    # voters, 794 / 150 / 86 / 570. z² = 64² / 236 = 17.36 without the correction.
    found = mcnemar(*hits(794, 150, 86, 570))
    assert found.n == 1600
    assert found.difference == pytest.approx(0.04)
    assert found.p == pytest.approx(4.11e-5, rel=0.01)


def test_the_bootstrap_is_that_of_resampled_samples():
    first, second = hits(60, 31, 12, 40)
    found = bootstrap_difference(first, second, draws=40_000)
    assert found.value == pytest.approx(first.mean() - second.mean())
    rng = np.random.default_rng(1)
    rows = rng.integers(0, len(first), (20_000, len(first)))
    differences = first[rows].mean(axis=1) - second[rows].mean(axis=1)
    assert (found.low, found.high) == pytest.approx(
        np.quantile(differences, [0.025, 0.975]), abs=0.008
    )
    assert bootstrap_difference(first, second, draws=40_000) == found, "a fixed seed"
    narrow = bootstrap_difference(first, second, confidence=0.5)
    assert found.low < narrow.low < narrow.value < narrow.high < found.high


def test_the_other_order_gives_the_other_sign():
    first, second = hits(10, 30, 12, 4)
    assert mcnemar(first, second).p == mcnemar(second, first).p
    assert mcnemar(second, first).difference == -mcnemar(first, second).difference
    equal = bootstrap_difference(torch.as_tensor(first), torch.as_tensor(first))
    assert (equal.value, equal.low, equal.high) == (0.0, 0.0, 0.0)


def test_arguments():
    right = torch.tensor([True, False])
    for bad in (right.float(), right[None], right[:0]):
        with pytest.raises(InputError, match="first: got"):
            mcnemar(bad, right)
    with pytest.raises(InputError, match="second: got 1 samples, expected 2"):
        bootstrap_difference(right, right[:1])
    for options in ({"draws": 0}, {"confidence": 1.0}):
        with pytest.raises(InputError, match=next(iter(options))):
            bootstrap_difference(right, right, **options)
