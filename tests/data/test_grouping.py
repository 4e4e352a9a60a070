import random

import pytest

from tokenflow.data.grouping import GroupedOrder


def lengths(position):
    rng = random.Random(position)
    return int(rng.random() < 0.6), rng.randrange(50)


def grouped(**changes):
    settings = {"global_batch_size": 8, "total_samples": 203, "batches": 6, "seed": 1}
    return GroupedOrder(lengths, **{**settings, **changes})


@pytest.mark.parametrize("total", [203, 200, 8, 96])
def test_every_epoch_has_every_position_once(total):
    order = grouped(total_samples=total)
    steps = total // 8
    for epoch in range(3):
        start = epoch * steps * 8
        assert sorted(order[p] for p in range(start, start + steps * 8)) == list(range(start, start + steps * 8))


def test_batches_hold_what_is_alike():
    order = grouped()
    batches = [[lengths(order[8 * step + place]) for place in range(8)] for step in range(24)]
    mixed = [batch for batch in batches if len({group for group, _ in batch}) > 1]
    assert len(mixed) <= 4  # one a window
    spread = [max(batch)[1] - min(batch)[1] for batch in batches if batch not in mixed]
    assert sum(spread) / len(spread) < 20  # 44 in batches at random


def test_batches_come_in_no_order_of_length():
    order = grouped(batches=24)
    means = [sum(lengths(order[8 * step + place])[1] for place in range(8)) for step in range(24)]
    assert means != sorted(means)


def test_the_order_is_a_function_of_seed_and_position():
    first, second = grouped(), grouped()
    assert [first[p] for p in range(200)] == [second[p] for p in reversed(range(200))][::-1]
    assert [first[p] for p in range(200)] != [grouped(seed=2)[p] for p in range(200)]
