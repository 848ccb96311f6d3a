"""The ring of stages of the wgmma kernels (csrc/cuda/ring.cuh), in every order of events.

One thread fetches, consumers (a warp of each warpgroup) multiply. The protocol is written down here
as steps; each step of each party, and each copy's end, may come before or after any other that it
does not wait for. All states that can be reached are looked at, once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

CONSUMERS = 2


class Ring(NamedTuple):
    stages: int
    slices: int
    groups: int
    released_early: bool = False  # a consumer gives a stage back before its product is over
    one_phase: bool = False  # the fetching thread waits for the phase before the one it needs

    @property
    def items(self) -> int:
        return self.slices * self.groups


class Consumer(NamedTuple):
    item: int = 0
    step: str = "wait"  # wait → multiply → settle → (next item, or drain after a group's last)
    flying: tuple[int, ...] = ()  # products under way, which read their stages


class State(NamedTuple):
    """A barrier is (phases that ended, arrivals still missing); full ones count a copy, too."""

    fetched: int  # items asked for
    copies: frozenset[int]  # under way
    content: tuple[int, ...]  # item of each stage, −1 while it is being written
    full: tuple[int, ...]  # phases that ended
    empty: tuple[tuple[int, int], ...]
    consumers: tuple[Consumer, ...]


def start(ring: Ring) -> State:
    return State(
        0, frozenset(), (-1,) * ring.stages, (0,) * ring.stages,
        ((0, CONSUMERS),) * ring.stages, (Consumer(),) * CONSUMERS,
    )  # fmt: skip


def passed(phases: int, parity: int) -> bool:
    """mbarrier.try_wait.parity: the last phase that ended has this parity; before the first it is
    1 that ended."""
    return (phases - 1) % 2 == parity


def put(values: tuple, at: int, value: object) -> tuple:
    return (*values[:at], value, *values[at + 1 :])


def arrive(empty: tuple[tuple[int, int], ...], stage: int) -> tuple[tuple[int, int], ...]:
    phases, missing = empty[stage]
    assert missing > 0
    return put(empty, stage, (phases, missing - 1) if missing > 1 else (phases + 1, CONSUMERS))


class Broken(AssertionError):
    pass


def after(ring: Ring, state: State) -> Iterator[State]:
    """Every state that may come next."""
    n = state.fetched
    if n < ring.items:
        stage, lap = n % ring.stages, n // ring.stages
        if passed(state.empty[stage][0], (lap + ring.one_phase) % 2 ^ 1):
            for consumer in state.consumers:
                if any(item % ring.stages == stage for item in consumer.flying):
                    raise Broken(f"stage {stage} is written while a product reads it")
                if consumer.item < n and consumer.item % ring.stages == stage:
                    raise Broken(f"stage {stage} is written before it was read")
            yield state._replace(
                fetched=n + 1, copies=state.copies | {n}, content=put(state.content, stage, -1)
            )
    for item in state.copies:
        stage = item % ring.stages
        yield state._replace(
            copies=state.copies - {item}, content=put(state.content, stage, item),
            full=put(state.full, stage, state.full[stage] + 1),
        )  # fmt: skip
    for number, consumer in enumerate(state.consumers):
        for moved, empty in _moves(ring, state, consumer):
            yield state._replace(consumers=put(state.consumers, number, moved), empty=empty)


def _moves(ring: Ring, state: State, consumer: Consumer) -> Iterator[tuple[Consumer, tuple]]:
    item, step, flying = consumer
    if item == ring.items:
        return
    stage, slice_ = item % ring.stages, item % ring.slices
    if step == "wait":
        if passed(state.full[stage], item // ring.stages % 2):
            yield consumer._replace(step="multiply"), state.empty
    elif step == "multiply":
        if state.content[stage] != item:
            raise Broken(f"item {item} meets {state.content[stage]} in stage {stage}")
        empty = arrive(state.empty, stage) if ring.released_early else state.empty
        yield Consumer(item, "settle", (*flying, item)), empty
    elif step == "settle":  # wgmma_wait<1>: what came before this item's products is over
        empty = state.empty
        if slice_ > 0 and not ring.released_early:
            empty = arrive(empty, (item - 1) % ring.stages)
        if slice_ == ring.slices - 1:
            yield Consumer(item, "drain", (item,)), empty
        else:
            yield Consumer(item + 1, "wait", (item,)), empty
    else:  # wgmma_finish: all is over
        empty = state.empty if ring.released_early else arrive(state.empty, stage)
        yield Consumer(item + 1), empty


def explored(ring: Ring) -> int:
    """The number of states; Broken where one is wrong, or nothing follows before the end."""
    begun = start(ring)
    seen, waiting = {begun}, [begun]
    while waiting:
        state = waiting.pop()
        following = list(after(ring, state))
        if not following and any(c.item < ring.items for c in state.consumers):
            raise Broken(f"everyone waits: {state}")
        new = [each for each in following if each not in seen]
        seen.update(new)
        waiting += new
    return len(seen)


@pytest.mark.parametrize("stages", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("slices", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_every_order_of_events_is_right(stages: int, slices: int, groups: int) -> None:
    assert explored(Ring(stages, slices, groups)) > 2 * slices * groups


def test_one_stage_is_too_few() -> None:
    """A slice's stage is given back after the next one's products are queued."""
    with pytest.raises(Broken, match="everyone waits"):
        explored(Ring(1, 2, 1))
    explored(Ring(1, 1, 3))


def test_faults_are_found() -> None:
    with pytest.raises(Broken, match="while a product reads it"):
        explored(Ring(2, 3, 2, released_early=True))
    with pytest.raises(Broken):
        explored(Ring(2, 3, 2, one_phase=True))
