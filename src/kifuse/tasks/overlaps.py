"""Finds inputs that two splits or two tasks share, only from their hashes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import NamedTuple

Inputs = Mapping[str, Iterable[str]]
"""The hash of each input of a task (`Example.input_hash`), by the name of its split."""


class Overlap(NamedTuple):
    """Inputs that two splits share."""

    task_a: str
    split_a: str
    task_b: str
    split_b: str
    count: int


def find_overlaps(tasks: Mapping[str, Inputs]) -> list[Overlap]:
    """Find inputs that occur in more than one split, of the same task or of two tasks.

    Args:
        tasks: The inputs of each task by its name, with tasks and splits in their order.

    Returns:
        One entry for each pair of splits that share inputs, in the same order, with the number of distinct
        shared inputs.
    """
    splits = [(task, split, inputs) for task, found in tasks.items() for split, inputs in found.items()]
    # the splits that hold an input; inputs of the same splits share one tuple
    places: dict[str, tuple[int, ...]] = {}
    known: dict[tuple[int, ...], tuple[int, ...]] = {}
    for number, (_, _, inputs) in enumerate(splits):
        for each in inputs:
            before = places.get(each, ())
            if not before or before[-1] != number:
                after = (*before, number)
                places[each] = known.setdefault(after, after)
    counts: dict[tuple[int, int], int] = defaultdict(int)
    for shared, count in Counter(places.values()).items():
        for pair in combinations(shared, 2):
            counts[pair] += count
    return [
        Overlap(*splits[first][:2], *splits[second][:2], count)
        for (first, second), count in sorted(counts.items())
    ]
