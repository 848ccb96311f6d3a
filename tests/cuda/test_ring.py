"""The ring of stages of the wgmma kernels (csrc/cuda/ring.cuh), in every order of events.

One thread of a block fetches, consumers (a warp of each warpgroup) multiply; two blocks of a
cluster fetch half of each stage for both, or, where each warpgroup has a ring of its own, one block
fetches all of that ring. The protocol is written down here as steps; each step of each party, each
copy's end and each arrival at another block's barrier may come before or after any other that it
does not wait for. All states that can be reached are looked at, once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest


class Ring(NamedTuple):
    stages: int
    slices: int
    groups: int
    blocks: int = 1
    consumers: int = 2  # of a block
    fetching: int = 0  # blocks that fetch, each a part of a stage; 0: all
    fault: str = ""

    @property
    def items(self) -> int:
        return self.slices * self.groups

    @property
    def parts(self) -> int:
        """Of a stage."""
        return self.fetching or self.blocks

    @property
    def arrivals(self) -> int:
        """That make a stage empty."""
        return self.consumers * (1 if self.fault == "own consumers alone" else self.blocks)


class Consumer(NamedTuple):
    item: int = 0
    step: str = "wait"  # wait → multiply → settle → (next item, or drain after a group's last)
    flying: tuple[int, ...] = ()  # products under way, which read their stages


class Block(NamedTuple):
    """Barriers: (phases that ended, arrivals still missing); full ones with the parts of a stage
    that were announced and are not there, below 0 where they come first."""

    content: tuple[tuple[int, ...], ...]  # item of each part of each stage, −1 while it is written
    full: tuple[tuple[int, int, int], ...]
    empty: tuple[tuple[int, int], ...]
    consumers: tuple[Consumer, ...]
    fetched: int = 0  # items asked for
    announced: bool = False  # the bytes of the next one
    begun: bool = False  # its barriers are made
    ended: bool = False


class Copy(NamedTuple):
    """Under way: a part of an item, from the block that asked to one that gets it."""

    item: int
    by: int
    to: int


class State(NamedTuple):
    blocks: tuple[Block, ...]
    copies: frozenset[Copy] = frozenset()
    arrivals: tuple[tuple[int, int], ...] = ()  # under way: (block, stage), sorted


class Broken(AssertionError):
    pass


def start(ring: Ring) -> State:
    block = Block(
        ((-1,) * ring.parts,) * ring.stages, ((0, 1, 0),) * ring.stages,
        ((0, ring.arrivals),) * ring.stages, (Consumer(),) * ring.consumers,
    )  # fmt: skip
    return State((block,) * ring.blocks)


def passed(phases: int, parity: int) -> bool:
    """mbarrier.try_wait.parity: the last phase that ended has this parity; before the first it is
    1 that ended."""
    return (phases - 1) % 2 == parity


def put(values: tuple, at: int, value: object) -> tuple:
    return (*values[:at], value, *values[at + 1 :])


def counted(block: Block, stage: int, arrivals: int, parts: int) -> Block:
    """At full[stage]: arrivals, and parts announced (or, below 0, parts that are there)."""
    phases, missing, expected = block.full[stage]
    missing, expected = missing - arrivals, expected + parts
    done = missing == 0 and expected == 0
    barrier = (phases + 1, 1, 0) if done else (phases, missing, expected)
    return block._replace(full=put(block.full, stage, barrier))


def arrived(ring: Ring, block: Block, stage: int) -> Block:
    """At empty[stage]."""
    phases, missing = block.empty[stage]
    if missing == 0 or block.ended:
        raise Broken("one arrival too many" if missing == 0 else "an arrival at a block that ended")
    barrier = (phases, missing - 1) if missing > 1 else (phases + 1, ring.arrivals)
    return block._replace(empty=put(block.empty, stage, barrier))


def after(ring: Ring, state: State) -> Iterator[State]:
    """Every state that may come next."""
    for at, block in enumerate(state.blocks):
        for following in (_fetching(ring, state, at, block), _consuming(ring, state, at, block)):
            yield from following
    for copy in state.copies:
        yield _landed(ring, state, copy)
    for each in set(state.arrivals):
        to, stage = each
        rest = list(state.arrivals)
        rest.remove(each)
        there = arrived(ring, state.blocks[to], stage)
        yield state._replace(blocks=put(state.blocks, to, there), arrivals=tuple(rest))


def _fetching(ring: Ring, state: State, at: int, block: Block) -> Iterator[State]:
    def with_block(changed: Block) -> State:
        return state._replace(blocks=put(state.blocks, at, changed))

    n = block.fetched
    stage, lap = n % ring.stages, n // ring.stages
    if not block.begun:
        yield with_block(block._replace(begun=True))
    elif not all(b.begun for b in state.blocks) and ring.fault != "no barrier at the start":
        pass
    elif n == ring.items:
        if not block.ended and _may_end(ring, block):
            yield with_block(block._replace(ended=True))
    elif not block.announced:
        if passed(block.empty[stage][0], (lap + (ring.fault == "one phase")) % 2 ^ 1):
            parts = 1 if ring.fault == "half of the bytes" else ring.parts
            yield with_block(counted(block, stage, 1, parts)._replace(announced=True))
    elif at >= ring.parts:  # the other block copies
        yield with_block(block._replace(fetched=n + 1, announced=False))
    else:
        blocks = list(state.blocks)
        for to, other in enumerate(blocks):
            _expect_free(ring, other, n, stage)
            content = put(other.content[stage], at, -1)
            blocks[to] = other._replace(content=put(other.content, stage, content))
        blocks[at] = blocks[at]._replace(fetched=n + 1, announced=False)
        copies = state.copies | {Copy(n, at, to) for to in range(ring.blocks)}
        yield state._replace(blocks=tuple(blocks), copies=copies)


def _expect_free(ring: Ring, block: Block, n: int, stage: int) -> None:
    """That item n may be written to a stage of this block."""
    if not block.begun or block.ended:
        raise Broken(f"a copy to a block that {'ended' if block.ended else 'has not begun'}")
    for consumer in block.consumers:
        if any(item % ring.stages == stage for item in consumer.flying):
            raise Broken(f"stage {stage} is written while a product reads it")
        if consumer.item < n and consumer.item % ring.stages == stage:
            raise Broken(f"stage {stage} is written before it was read")


def _may_end(ring: Ring, block: Block) -> bool:
    """All of its threads are through; the one that fetches waits for every stage to be free."""
    if any(c.item < ring.items for c in block.consumers):
        return False
    if ring.blocks == 1 or ring.fault == "no wait at the end":
        return True
    last = range(ring.items, ring.items + ring.stages)
    return all(passed(block.empty[n % ring.stages][0], n // ring.stages % 2 ^ 1) for n in last)


def _landed(ring: Ring, state: State, copy: Copy) -> State:
    block, stage = state.blocks[copy.to], copy.item % ring.stages
    if block.ended:
        raise Broken("a copy to a block that ended")
    content = put(block.content[stage], copy.by, copy.item)
    block = counted(block._replace(content=put(block.content, stage, content)), stage, 0, -1)
    return state._replace(blocks=put(state.blocks, copy.to, block), copies=state.copies - {copy})


def _consuming(ring: Ring, state: State, at: int, block: Block) -> Iterator[State]:
    if not all(b.begun for b in state.blocks):
        return
    for number, consumer in enumerate(block.consumers):
        for moved, free in _moves(ring, block, consumer):
            # Which of a block's consumers is where makes no difference.
            consumers = tuple(sorted(put(block.consumers, number, moved)))
            changed = block._replace(consumers=consumers)
            arrivals = list(state.arrivals)
            for stage in free:
                changed = arrived(ring, changed, stage)
                if ring.fault != "own consumers alone":
                    arrivals += [(to, stage) for to in range(ring.blocks) if to != at]
            yield state._replace(
                blocks=put(state.blocks, at, changed), arrivals=tuple(sorted(arrivals))
            )


def _moves(ring: Ring, block: Block, consumer: Consumer) -> Iterator[tuple[Consumer, list[int]]]:
    """What a consumer may be next, and the stages that it gives back."""
    item, step, flying = consumer
    if item == ring.items:
        return
    stage, slice_ = item % ring.stages, item % ring.slices
    early = ring.fault == "released early"
    if step == "wait":
        if passed(block.full[stage][0], item // ring.stages % 2):
            yield consumer._replace(step="multiply"), []
    elif step == "multiply":
        if set(block.content[stage]) != {item}:
            raise Broken(f"item {item} meets {block.content[stage]} in stage {stage}")
        yield Consumer(item, "settle", (*flying, item)), [stage] if early else []
    elif step == "settle":  # wgmma_wait<1>: what came before this item's products is over
        free = [(item - 1) % ring.stages] if slice_ > 0 and not early else []
        if slice_ == ring.slices - 1:
            yield Consumer(item, "drain", (item,)), free
        else:
            yield Consumer(item + 1, "wait", (item,)), free
    else:  # wgmma_finish: all is over
        yield Consumer(item + 1), [] if early else [stage]


def explored(ring: Ring) -> int:
    """The number of states; Broken where one is wrong, or nothing follows before the end."""
    begun = start(ring)
    seen, waiting = {begun}, [begun]
    while waiting:
        state = waiting.pop()
        following = list(after(ring, state))
        if not following and not all(b.ended for b in state.blocks):
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


# Stages, slices, groups; warps that multiply, of a block; blocks that fetch.
@pytest.mark.parametrize(
    "given",
    [
        (2, 1, 2, 2, 2), (2, 1, 3, 1, 2), (2, 2, 2, 1, 2), (2, 3, 1, 1, 2), (3, 1, 3, 1, 2),
        (2, 1, 4, 1, 1), (2, 3, 2, 1, 1), (3, 2, 2, 1, 1),
    ],
    ids=str,
)  # fmt: skip
def test_every_order_of_events_of_two_blocks_is_right(given: tuple[int, ...]) -> None:
    stages, slices, groups, consumers, fetching = given
    assert explored(Ring(stages, slices, groups, 2, consumers, fetching)) > 1000


def test_one_stage_is_too_few() -> None:
    """A slice's stage is given back after the next one's products are queued."""
    with pytest.raises(Broken, match="everyone waits"):
        explored(Ring(1, 2, 1))
    explored(Ring(1, 1, 3))


@pytest.mark.parametrize("blocks", [1, 2])
def test_faults_are_found(blocks: int) -> None:
    ring = Ring(2, 3, 2, blocks, 2 // blocks)
    with pytest.raises(Broken, match="while a product reads it"):
        explored(ring._replace(fault="released early"))
    with pytest.raises(Broken):
        explored(ring._replace(fault="one phase"))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("no barrier at the start", "a copy to a block that has not begun"),
        ("half of the bytes", "meets"),
        ("own consumers alone", "is written"),
        ("no wait at the end", "ended"),
    ],
)
def test_faults_of_clusters_are_found(fault: str, message: str) -> None:
    with pytest.raises(Broken, match=message):
        explored(Ring(2, 1, 3, 2, 1, fault=fault))


@pytest.mark.parametrize(
    "fault", ["no barrier at the start", "own consumers alone", "no wait at the end"]
)
def test_faults_of_rings_apart_are_found(fault: str) -> None:
    with pytest.raises(Broken):
        explored(Ring(2, 1, 3, 2, 1, 1, fault))
