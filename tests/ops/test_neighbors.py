"""KNeighbors: scikit-learn's interface, and its answers."""

from __future__ import annotations

import numpy as np
import pytest

sklearn = pytest.importorskip("sklearn", minversion="1.6")

from sklearn.neighbors import NearestNeighbors  # noqa: E402
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402

from robustft.neighbors import KNeighbors  # noqa: E402


@parametrize_with_checks([KNeighbors()])
def test_scikit_learn_takes_it_for_an_estimator(estimator, check):
    check(estimator)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("own", [True, False])
def test_answers_are_those_of_scikit_learn(dtype, own):
    random = np.random.default_rng(0)
    rows = random.normal(size=(300, 7)).astype(dtype)
    queries = None if own else random.normal(size=(20, 7)).astype(dtype)
    ours, theirs = KNeighbors(4).fit(rows), NearestNeighbors(n_neighbors=4).fit(rows)
    for k in (None, 9):
        distances, indices = ours.kneighbors(queries, k)
        expected, nearest = theirs.kneighbors(queries, k)
        np.testing.assert_allclose(distances, expected, rtol=1e-5)
        np.testing.assert_array_equal(indices, nearest)
        assert distances.dtype == dtype
        np.testing.assert_array_equal(ours.kneighbors(queries, k, return_distance=False), nearest)


def test_a_row_is_not_its_own_neighbour_among_equal_rows():
    rows = np.ones((6, 3), dtype=np.float32)
    distances, indices = KNeighbors(3).fit(rows).kneighbors()
    assert (distances == 0).all()
    assert all(len(set(near)) == 3 for near in indices)
    assert not any(i in near for i, near in enumerate(indices) if i < 4)


@pytest.mark.parametrize(("k", "own", "most"), [(0, False, 6), (7, False, 6), (6, True, 5)])
def test_more_neighbours_than_there_are_is_an_error(k, own, most):
    rows = np.eye(6, dtype=np.float32)
    with pytest.raises(ValueError, match=f"n_neighbors: got {k}, expected 1 to {most}"):
        KNeighbors(k).fit(rows).kneighbors(None if own else rows)
