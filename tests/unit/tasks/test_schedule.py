from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kifuse.tasks import training_order


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 500), max_size=70),
    epochs=st.integers(1, 4),
    batch_size=st.integers(1, 20),
    seed=st.integers(0, 5),
    group=st.integers(1, 6),
)
def test_every_epoch_visits_every_example_once(lengths, epochs, batch_size, seed, group):
    order = training_order(lengths, epochs=epochs, batch_size=batch_size, seed=seed, group=group)
    count = len(lengths)
    assert len(order) == epochs * count
    for epoch in range(epochs):
        assert sorted(order[epoch * count : (epoch + 1) * count]) == list(range(count))


def padding(order: list[int], lengths: list[int], batch_size: int) -> int:
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return sum(
        max(lengths[i] for i in batch) * len(batch) - sum(lengths[i] for i in batch) for batch in batches
    )


@pytest.mark.parametrize("count", [400, 403])
def test_batches_hold_examples_of_like_length(count):
    rng = random.Random(0)
    lengths = [rng.randint(10, 500) for _ in range(count)]
    grouped = training_order(lengths, epochs=3, batch_size=8, seed=0)
    plain = training_order(lengths, epochs=3, batch_size=8, seed=0, group=1)
    # Also where batches run over the end of an epoch, which shifts all that follow.
    assert padding(grouped, lengths, 8) < 0.25 * padding(plain, lengths, 8)


def test_long_and_short_batches_come_mixed():
    lengths = list(range(160))
    order = training_order(lengths, epochs=1, batch_size=8, seed=0, group=20)
    first = [lengths[order[i]] for i in range(0, 160, 8)]
    assert first != sorted(first)
    assert sorted(first) == list(range(0, 160, 8))


def test_the_order_is_a_pure_function_of_its_arguments():
    lengths = [5, 1, 9, 4, 4, 7, 2] * 9
    orders = [training_order(lengths, epochs=2, batch_size=4, seed=seed) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_epochs_differ_and_more_epochs_only_append():
    lengths = [3] * 40
    order = training_order(lengths, epochs=2, batch_size=8, seed=0)
    assert order[:40] != order[40:]
    assert training_order(lengths, epochs=1, batch_size=8, seed=0) == order[:40]


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"batch_size": 0}, {"group": 0}])
def test_arguments_below_one_are_refused(wrong):
    with pytest.raises(ValueError, match="expected at least 1"):
        training_order([1, 2], **{"epochs": 1, "batch_size": 1, "seed": 0, **wrong})
