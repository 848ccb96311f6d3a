"""The timeline of the wgmma screen's ring, where its answer is known otherwise."""

from __future__ import annotations

import pytest

from benchmarks.card import ring

FAST = ring.Card(l2=1e15, latency=0)
PLAIN = ring.Kernel(256, True, 3, 8, 0)


def test_with_nothing_to_wait_for_the_tensor_cores_are_busy() -> None:
    assert ring.busy(PLAIN, FAST, 200) > 0.99


def test_a_slow_cache_sets_the_rate() -> None:
    """A stage of 32 KB serves two products of 512 cycles each."""
    slow = ring.Card(l2=1e12, latency=0)
    wanted = 1024 * slow.bytes_a_cycle / (32 << 10)
    assert ring.busy(PLAIN, slow, 200) == pytest.approx(wanted, rel=0.02)
    flowing = PLAIN._replace(resident=False)
    assert ring.busy(flowing, slow, 200) == pytest.approx(wanted * 2 / 3, rel=0.02)


def test_a_cluster_reads_the_cache_once() -> None:
    """For two blocks; each one's port takes all that comes to it."""
    slow, near = ring.Card(l2=1e12, latency=0, remote=0), PLAIN._replace(stages=8)
    once = ring.busy(near, slow, 200)
    assert ring.busy(near._replace(cluster=2), slow, 200) == pytest.approx(2 * once, rel=0.02)
    narrow = FAST._replace(port=16, remote=0)
    for cluster in (1, 2):
        wanted = 1024 * narrow.port / (32 << 10)
        found = ring.busy(near._replace(cluster=cluster), narrow, 200)
        assert found == pytest.approx(wanted, rel=0.02)


def test_rings_apart_run_through_a_test() -> None:
    """Of as long as a tile's products: one warpgroup's stages fill while the other multiplies."""
    tile = ring.Kernel(128, True, 4, 8, 1400, 2)
    near = FAST._replace(remote=0, issue=1.0)
    together, apart = (ring.busy(tile._replace(apart=x), near, 200) for x in (False, True))
    assert together < 0.95 < 0.99 < apart


def test_long_tests_set_the_rate() -> None:
    """Both warpgroups' tests pass through the same schedulers, one after the other."""
    long = PLAIN._replace(test=100_000)
    step = 2 * 8 * 512
    assert ring.busy(long, FAST, 200) == pytest.approx(step / 200_000, rel=0.05)


def test_latency_is_hidden_by_stages_alone() -> None:
    far = ring.Card(l2=1e15, latency=4000)
    shares = [ring.busy(PLAIN._replace(stages=stages), far, 100) for stages in (2, 3, 4, 8)]
    assert shares == sorted(shares)
    assert shares[0] < 0.4
    assert shares[-1] > 0.9


def test_predictions_are_shares() -> None:
    for dim in (64, 512, 513, 640, 768, 1024):
        share = ring.predicted(50_000, 350_000, dim, ring.Card())
        assert 0 < share < ring.busy(ring.kernel(dim), ring.Card()) <= 1
    assert ring.predicted(2000, 350_000, 512, FAST) > ring.predicted(
        2000, 350_000, 512, ring.Card()
    )
    assert ring.waves(132 * 128, 256, ring.kernel(512), ring.Card()) == 1
