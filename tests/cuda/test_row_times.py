"""The timeline of whole rows, where its answer is known otherwise."""

from __future__ import annotations

import pytest

from benchmarks.card import rows

CARD = rows.Card(latency=0)
PLAIN = rows.Kernel(8192, 0, 10)


def test_with_little_to_do_memory_sets_the_rate() -> None:
    assert rows.share(PLAIN, CARD) > 0.98
    assert rows.share(PLAIN._replace(written=8192), CARD) > 0.98


def test_many_instructions_set_the_rate() -> None:
    """Four schedulers share the rows, each issues in 0.7 of the cycles."""
    busy = PLAIN._replace(instructions=10_000)
    wanted = 8192 / CARD.bytes_a_cycle / (10_000 / 0.7 / 4)
    assert rows.share(busy, CARD) == pytest.approx(wanted, rel=0.02)


def test_latency_is_hidden_by_rows_in_flight_and_by_asking_ahead() -> None:
    far = rows.Card(latency=8000)
    shares = [rows.share(PLAIN._replace(groups=groups), far) for groups in (1, 4, 16, 64)]
    assert shares == sorted(shares)
    assert shares[0] == pytest.approx(8192 / far.bytes_a_cycle / 8456, rel=0.01)
    assert shares[-1] > 0.95
    long = PLAIN._replace(instructions=4000, groups=4)
    assert rows.share(long._replace(asked=0.5), far) > 1.1 * rows.share(long, far)


def test_a_group_waits_for_its_last_warp() -> None:
    """Eight rows that come and go together keep fewer in flight than eight by themselves."""
    alone = rows.Kernel(8192, 4096, 2000)
    together = alone._replace(warps=8, rows=8, groups=2)
    assert rows.share(together, rows.Card()) < rows.share(alone, rows.Card()) <= 1


def test_predictions_are_shares() -> None:
    for size, dim in ((2, 1024), (4, 512)):
        passes = [rows.cuda(direction, size) for direction in ("forward", "backward")]
        assert 0 < rows.predicted(65_536, dim, passes, rows.Card()) < 1
