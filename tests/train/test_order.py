import pytest
import torch

from robustft.errors import InputError
from robustft.train.batches import reference_batches
from robustft.train.order import Order


def flat(steps):
    return [index for _, batches in steps for batch in batches for index in batch.tolist()]


@pytest.mark.parametrize("accum", [1, 2, 5])
@pytest.mark.parametrize("drop_last", [False, True])
def test_an_epoch_has_every_sample_once(accum, drop_last):
    order = Order(n=127, batch_size=16, accum=accum, drop_last=drop_last)
    epoch = flat(order.steps(0, order.steps_per_epoch))
    assert len(set(epoch)) == len(epoch) == (112 if drop_last else 127)
    assert order.batches_per_epoch == (7 if drop_last else 8)
    assert order.steps_per_epoch == -(-order.batches_per_epoch // accum)


def test_beginning_anywhere_gives_the_same_steps():
    order = Order(n=53, batch_size=8, accum=2, seed=3)
    whole = list(order.steps(0, 20))
    for start in (1, 4, 7, 19):
        assert flat(order.steps(start, 20)) == flat(whole[start:])
        assert order.passes_before(start) == sum(len(b) for _, b in whole[:start])
        assert order.passes(start) == len(whole[start][1])


def test_epochs_and_seeds_have_orders_of_their_own():
    first = Order(n=40, batch_size=8, seed=0)
    orders = [first.of_epoch(0), first.of_epoch(1), Order(n=40, batch_size=8, seed=1).of_epoch(0)]
    assert len({tuple(o.tolist()) for o in orders}) == 3
    later = Order(n=40, batch_size=8, seed=0, first_epoch=1)
    assert flat(later.steps(0, 5)) == flat(first.steps(5, 10))


def test_processes_share_the_epoch_without_overlap():
    parts = [Order(n=50, batch_size=4, rank=rank, world=3, drop_last=True) for rank in range(3)]
    seen = [set(flat(part.steps(0, part.steps_per_epoch))) for part in parts]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 48
    together = Order(n=50, batch_size=12, drop_last=True)
    assert set.union(*seen) == set(flat(together.steps(0, 4)))
    with pytest.raises(InputError, match=r"batch_size: got 4 on 3 processes .* expected 12"):
        Order(n=11, batch_size=4, world=3)


@pytest.mark.parametrize("accum", [1, 2])
@pytest.mark.parametrize("n", [49, 50, 53, 59, 60])
def test_an_incomplete_batch_is_shared_and_every_sample_weighs_the_same(n, accum):
    one = Order(n=n, batch_size=12, accum=accum)
    parts = [Order(n=n, batch_size=4, accum=accum, rank=rank, world=3) for rank in range(3)]
    assert {part.steps_per_epoch for part in parts} == {one.steps_per_epoch}
    for step, (_, whole) in enumerate(one.steps(0, one.steps_per_epoch)):
        weight = dict.fromkeys(torch.cat(whole).tolist(), 0.0)
        for part in parts:
            ((_, batches),) = part.steps(step, step + 1)
            for batch, of_batch in zip(batches, part.weights(step), strict=True):
                assert len(batch) > 0
                for index in batch.tolist():  # the mean of three processes' gradients
                    weight[index] += of_batch / len(batch) / 3
        assert len(weight) == sum(map(len, whole))
        assert list(weight.values()) == pytest.approx([1 / len(weight)] * len(weight))


def test_a_set_smaller_than_a_batch_is_kept():
    order = Order(n=5, batch_size=8, drop_last=True)
    assert sorted(flat(order.steps(0, 1))) == list(range(5))


def test_reference_batches_are_dealt_anew_when_used_up():
    order = Order(n=10, batch_size=4, drop_last=True)
    dealt = list(reference_batches(order, 0, 6))
    assert [cycle for cycle, _ in dealt] == [0, 0, 1, 1, 2, 2]
    for first in (0, 2, 4):
        assert len(set(torch.cat([dealt[first][1], dealt[first + 1][1]]).tolist())) == 8
    again = list(reference_batches(order, 3, 6))
    assert all(torch.equal(a[1], b[1]) for a, b in zip(dealt[3:], again, strict=True))
