"""The settings that a comparison has tried, as its folder holds them. No torch."""

from __future__ import annotations

import itertools
from pathlib import Path

from kifuse.comparing.compare_section import Section, read_section
from kifuse.comparing.grid import folder_name, run_name
from kifuse.comparing.varied_settings import ON_DEV, points
from kifuse.config.reading import read_yaml
from kifuse.record.run_record import FILE
from kifuse.reporting.run_groups import COMPARISON_FILE, open_run
from kifuse.reporting.sweeps import Sweep, Tried


def open_sweep(folder: Path) -> Sweep | None:
    """Read which settings a comparison has tried, and how they scored on dev.

    Args:
        folder: The folder of the comparison.

    Returns:
        The sweep; None if no settings are varied.

    Raises:
        ConfigError: The file of the grid is damaged.
        RunError: A run's record is damaged.
    """
    file = folder / COMPARISON_FILE
    section = read_section(read_yaml(file), file) if file.is_file() else Section()
    if not section.vary:
        return None
    expected = max(len(section.orders), 1) * len(section.seeds)
    tried = []
    for variant in section.variants:
        place = folder / folder_name(variant.label) / ON_DEV
        for point in points(section.vary):
            runs = []
            for order, seed in itertools.product(section.orders or (None,), section.seeds):
                run = place / point.name / run_name(order, seed)
                if (run / FILE).is_file():
                    runs.append(open_run(run))
            values = tuple(value for _, value in point.values)
            tried.append(Tried(variant.label, values, tuple(runs), expected))
    return Sweep(tuple(section.vary), tuple(tried))
