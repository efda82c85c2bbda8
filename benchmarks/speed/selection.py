"""Time the selection of the top 20% at growing sizes, and its memory."""

from __future__ import annotations

import resource
import subprocess
import sys

import torch
from benchmarks.speed.pairs import Ratio, in_turn, ratio, seconds

from kifuse.knowledge import top_fraction_threshold

SORTED_UP_TO = 100_000_000


def compare(quick: bool) -> list[Ratio]:
    """Time exact selection against sorting everything."""
    results = []
    for size in (1_000_000,) if quick else (1_000_000, 10_000_000, SORTED_UP_TO):
        values = [torch.rand(part) for part in (size // 2, size - size // 2)]

        def sort(values: list[torch.Tensor] = values, size: int = size) -> float:
            row = torch.cat(values)
            return float(row.sort(descending=True).values[int(0.2 * size)])

        def select(values: list[torch.Tensor] = values) -> float:
            return float(top_fraction_threshold(values, 0.2))

        assert select() == sort()
        pairs = 3 if size >= SORTED_UP_TO or quick else 9
        results.append(
            ratio(
                f"threshold among {size:,} scalars",
                "counting bit patterns",
                "sorting all",
                in_turn(select, sort, pairs, warm_up=0),
                "the same threshold",
            )
        )
    return results


def growth(sizes: tuple[int, ...]) -> list[dict[str, float]]:
    """Measure seconds and bytes beyond the scores themselves, each size in a process of its own."""
    found = []
    for size in sizes:
        code = f"from benchmarks.speed.selection import measure; measure({size})"
        out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
        took, extra = map(float, out.split())
        found.append({"scalars": size, "seconds": took, "extra_mib": extra})
    return found


def measure(size: int) -> None:
    """Print the seconds and MiB that a selection among `size` scalars takes."""
    values = [torch.empty(part).uniform_() for part in [size // 8] * 8]
    top_fraction_threshold(values[:1], 0.2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    took = seconds(lambda: top_fraction_threshold(values, 0.2))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(took, (after - before) / 1024)
