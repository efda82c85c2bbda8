"""The order in which training visits examples."""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence


def training_order(
    lengths: Sequence[int], *, epochs: int, batch_size: int, seed: int, group: int = 16
) -> array[int]:
    """Order a task's examples over all epochs so that each batch holds examples of similar length.

    Each epoch is a new permutation. Windows of ``group * batch_size`` random examples are sorted by length
    and split into batches, and the batches of the epoch are shuffled. If the number of examples is not a
    multiple of the batch size, a batch continues into the next epoch: only the very last batch may be short.

    Args:
        lengths: Number of tokens of each example.
        epochs: Number of passes.
        batch_size: Examples in one optimizer step, over all devices and micro-batches.
        seed: Seed of the order, which depends on nothing else that is random.
        group: Number of batches whose examples are sorted together; 1 leaves batches random.

    Returns:
        ``epochs * len(lengths)`` indices.

    Raises:
        ValueError: If ``epochs``, ``batch_size`` or ``group`` is below 1.
    """
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("group", group)):
        if value < 1:
            raise ValueError(f"{name} is {value}, expected at least 1")
    order = array("q")
    for epoch in range(epochs):
        rng = random.Random(f"{seed}\n{epoch}")  # noqa: S311 - orders examples, not a secret
        shuffled = array("q", range(len(lengths)))
        rng.shuffle(shuffled)
        # The first examples complete the batch that the epoch before left unfinished.
        start = min(-len(order) % batch_size, len(shuffled))
        end = start + (len(shuffled) - start) // batch_size * batch_size
        batches = _batches_by_length(shuffled[start:end], lengths, batch_size, group)
        rng.shuffle(batches)
        order.extend(shuffled[:start])
        for batch in batches:
            order.extend(batch)
        order.extend(shuffled[end:])
    return order


def _batches_by_length(
    indices: array[int], lengths: Sequence[int], batch_size: int, group: int
) -> list[array[int]]:
    window = group * batch_size
    batches = []
    for start in range(0, len(indices), window):
        # A stable sort: equal lengths keep their random order.
        by_length = array("q", sorted(indices[start : start + window], key=lengths.__getitem__))
        batches += [by_length[i : i + batch_size] for i in range(0, len(by_length), batch_size)]
    return batches
