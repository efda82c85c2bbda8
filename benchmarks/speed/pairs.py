"""Time two ways to do the same thing in turn, which is fair even if the machine's speed changes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Ratio:
    """How long `ours` takes, compared with `theirs`.

    Attributes:
        name: What was compared.
        ours: What our way is.
        theirs: What it is compared with.
        ratio: The median over the pairs of theirs divided by ours: above 1, ours is faster.
        low: 10% of the pairs are below this ratio.
        high: 10% of the pairs are above this ratio.
        ours_ms: Median time of ours, in milliseconds.
        theirs_ms: Median time of theirs, in milliseconds.
        pairs: How many pairs were timed.
        note: What else was found.
    """

    name: str
    ours: str
    theirs: str
    ratio: float
    low: float
    high: float
    ours_ms: float
    theirs_ms: float
    pairs: int
    note: str = ""

    def json(self) -> dict[str, Any]:
        """Return the result as JSON."""
        return asdict(self)


def ratio(name: str, ours: str, theirs: str, times: list[tuple[float, float]], note: str = "") -> Ratio:
    """Sum up pairs of (seconds of ours, seconds of theirs)."""
    ratios = sorted(b / a for a, b in times)
    edge = len(ratios) // 10
    return Ratio(
        name,
        ours,
        theirs,
        statistics.median(ratios),
        ratios[edge],
        ratios[-1 - edge],
        1e3 * statistics.median(a for a, _ in times),
        1e3 * statistics.median(b for _, b in times),
        len(times),
        note,
    )


def in_turn(
    a: Callable[[], object], b: Callable[[], object], pairs: int, warm_up: int = 1
) -> list[tuple[float, float]]:
    """Time two calls one after the other, and change each time which one comes first."""
    for _ in range(warm_up):
        a()
        b()
    times = []
    for number in range(pairs):
        first, second = (a, b) if number % 2 == 0 else (b, a)
        one, two = seconds(first), seconds(second)
        times.append((one, two) if number % 2 == 0 else (two, one))
    return times


def seconds(call: Callable[[], object]) -> float:
    """Return how long a call takes, in seconds."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
