"""Seeded draws of examples, balanced over the labels of a task."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol


class Targeted(Protocol):
    """Anything with a target, such as an example."""

    @property
    def target(self) -> str:
        """The output that is trained."""
        ...


def visiting_order(
    examples: Sequence[Targeted], labels: Sequence[str] | None, key: tuple[object, ...]
) -> list[int]:
    """Put examples into a seeded order from which subsets are taken.

    Every prefix is a subset, so a smaller subset is part of a larger one drawn with the same key. With
    labels, the numbers of the labels in every prefix differ by at most one, until a label runs out.

    Args:
        examples: The examples to draw from.
        labels: The labels to balance over, or None for a plain random order.
        key: What the order depends on besides the examples, such as the seed and the name of the task.

    Returns:
        A permutation of ``range(len(examples))``.
    """
    # A string seed goes through SHA-512, so the draw is the same on every platform and Python version.
    rng = random.Random("\n".join(map(str, key)))  # noqa: S311 - draws examples, not a secret
    order = list(range(len(examples)))
    rng.shuffle(order)
    if not labels:
        return order
    known = set(labels)
    classes: dict[str | None, list[int]] = defaultdict(list)
    for index in order:
        target = examples[index].target
        classes[target if target in known else None].append(index)
    rounds = [(turn, place) for place, members in enumerate(classes.values()) for turn in range(len(members))]
    columns = list(classes.values())
    return [columns[place][turn] for turn, place in sorted(rounds)]
