"""The order in which training visits examples."""

from __future__ import annotations

import random
from collections.abc import Sequence


def training_order(
    lengths: Sequence[int], *, epochs: int, batch_size: int, seed: int, group: int = 16
) -> list[int]:
    """Order the examples of a task over all epochs so that a batch holds examples of like length.

    Each epoch is a fresh permutation. Windows of ``group * batch_size`` random examples are sorted by length
    and parted into batches, and the batches of the epoch are shuffled. Where the number of examples is no
    multiple of the batch size, a batch runs over the end of an epoch: only the very last one may be short.

    Args:
        lengths: Number of tokens of each example.
        epochs: Number of passes.
        batch_size: Examples of one optimizer step, over all devices and micro-batches.
        seed: Seed of the order; nothing else is random.
        group: Number of batches whose examples are sorted together; 1 leaves batches random.

    Returns:
        ``epochs * len(lengths)`` indices.

    Raises:
        ValueError: If ``epochs``, ``batch_size`` or ``group`` is below 1.
    """
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("group", group)):
        if value < 1:
            raise ValueError(f"{name} is {value}, expected at least 1")
    order: list[int] = []
    for epoch in range(epochs):
        rng = random.Random(f"{seed}\n{epoch}")  # noqa: S311 - an order of examples, no secret
        shuffled = list(range(len(lengths)))
        rng.shuffle(shuffled)
        # The first examples fill up the batch that the epoch before left short.
        start = min(-len(order) % batch_size, len(shuffled))
        end = start + (len(shuffled) - start) // batch_size * batch_size
        batches = _batches_by_length(shuffled[start:end], lengths, batch_size, group)
        rng.shuffle(batches)
        order.extend(shuffled[:start])
        order.extend(index for batch in batches for index in batch)
        order.extend(shuffled[end:])
    return order


def _batches_by_length(
    indices: list[int], lengths: Sequence[int], batch_size: int, group: int
) -> list[list[int]]:
    window = group * batch_size
    batches = []
    for start in range(0, len(indices), window):
        # A stable sort: equal lengths keep their random order.
        by_length = sorted(indices[start : start + window], key=lengths.__getitem__)
        batches += [by_length[i : i + batch_size] for i in range(0, len(by_length), batch_size)]
    return batches
