"""The folder of a comparison: which grid it holds, and the page and tables of its finished runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from kifuse.comparing.compare_section import PAGE, SECTION, TABLES, Variant, read_section
from kifuse.comparing.grid import Grid
from kifuse.comparing.tried_settings import open_sweep
from kifuse.config.reading import read_yaml
from kifuse.errors import ConfigError, RunError
from kifuse.io.storage import write_text
from kifuse.reporting.all_plots_and_tables import all_tables
from kifuse.reporting.page import comparison_page, sweep_page
from kifuse.reporting.run_groups import COMPARISON_FILE, Run, comparison_runs
from kifuse.reporting.tables import write_tables
from kifuse.reporting.wording import shorten
from kifuse.running.run_start import RENDERING, WITHOUT_EFFECT, config_json, differences

_OF_THE_LOCK = (".lock", ".lock.owner")

_HEAD = "# The runs in this folder. 'kifuse compare' with this file makes all runs that are not finished.\n"


def open_folder(grid: Grid) -> Grid:
    """Add a grid to its folder, which is empty or holds a grid with the same settings.

    Args:
        grid: The grid; its methods, orders and seeds may differ from those in the folder.

    Returns:
        The variants of the folder with those of the grid, and the grid's own runs.

    Raises:
        RunError: The folder holds something else, or a variant of the same label with other settings.
    """
    folder = grid.folder
    variants, orders, seeds = grid.variants, grid.orders, grid.seeds
    refuse_other_folder(folder)
    if (folder / COMPARISON_FILE).is_file():
        found = read_yaml(folder / COMPARISON_FILE)
        try:
            section = read_section(found, folder / COMPARISON_FILE)
        except ConfigError as error:
            raise RunError(f"{error}\nRestore {folder / COMPARISON_FILE}, or name another folder.") from error
        before = {name: value for name, value in found.data.items() if name not in (SECTION, "output")}
        _refuse_changes(folder, before, _common(grid), section.variants, variants)
        if bool(section.vary) != bool(grid.vary):
            there, here = ("values", "none") if section.vary else ("no values", "some")
            raise RunError(
                f"output: {folder} holds a comparison that tries {there} of settings, but this one tries "
                f"{here}. Name another folder."
            )
        labels = {variant.label for variant in section.variants}
        variants = (*section.variants, *(variant for variant in variants if variant.label not in labels))
        orders = list(dict.fromkeys([*section.orders, *orders]))
        seeds = list(dict.fromkeys([*section.seeds, *seeds]))
    section = {"methods": [variant.as_entry() for variant in variants], "orders": orders, "seeds": seeds}
    if grid.vary:
        section |= {"vary": {key: list(values) for key, values in grid.vary.items()}, "choose_on": "dev"}
    plain = {**_common(grid), "output": str(folder), SECTION: {k: v for k, v in section.items() if v}}
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=110)
    write_text(folder / COMPARISON_FILE, _HEAD + text)
    return dataclasses.replace(grid, variants=variants)


def refuse_other_folder(folder: Path) -> None:
    """Refuse a file, and a folder that holds something else than a comparison.

    Raises:
        RunError: It is such a file or folder.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"output: {folder} is a file. Name a folder.")
    if (folder / COMPARISON_FILE).is_file() or not folder.exists():
        return
    if any(path.suffix != ".tmp" and path.name not in _OF_THE_LOCK for path in folder.iterdir()):
        raise RunError(f"output: {folder} is not empty and holds no comparison. Name a new or empty folder.")


def _common(grid: Grid) -> dict[str, Any]:
    """What all runs have in common, as a configuration that lacks nothing but the section."""
    plain = config_json(grid.common)
    del plain["method"], plain["training"]["seed"]
    if grid.orders:
        del plain["data"]["order"]
    return plain


def _refuse_changes(
    folder: Path, before: dict[str, Any], now: dict[str, Any], old: Sequence[Variant], new: Sequence[Variant]
) -> None:
    """Refuse other settings for runs whose names the folder has already."""
    filler = {"method": {"name": "-"}}
    without_effect = WITHOUT_EFFECT
    if now["data"]["benchmark"] is not None and now["data"]["chat_template"] == "auto":
        without_effect = (*without_effect, RENDERING)  # a named benchmark has its own prompts
    changed = [
        each
        for each in differences({**before, **filler}, {**now, **filler})
        if not each.startswith(without_effect)
    ]
    known = {variant.label: variant for variant in old}
    changed += [
        f"{variant.label} ({known[variant.label].as_entry()!r} there, {variant.as_entry()!r} here)"
        for variant in new
        if variant.label in known and variant != known[variant.label]
    ]
    if changed:
        raise RunError(
            f"output: {folder} holds a comparison that differs in {', '.join(changed)}. Give a row with "
            "other settings its own label, put the setting back (--set), or name another folder."
        )


def finished_runs(grid: Grid, left_out: list[str]) -> list[Run]:
    """The runs in the folder that have a record, in the order of the variants; see `comparison_runs`."""
    return comparison_runs(grid.folder, [variant.label for variant in grid.variants], left_out)


def write_results(grid: Grid) -> str | None:
    """Write the page and the tables again; a file that cannot be written stops no run.

    Args:
        grid: What `open_folder` gave.

    Returns:
        None, or one line about what went wrong or was left out.
    """
    left_out: list[str] = []
    try:
        runs, sweep = finished_runs(grid, left_out), open_sweep(grid.folder)
        if not runs and sweep is not None:
            write_text(grid.folder / PAGE, sweep_page(sweep, grid.folder))
        if runs:
            write_text(grid.folder / PAGE, comparison_page(runs, grid.folder, sweep=sweep))
            write_tables(all_tables(runs, sweep), grid.folder / TABLES)
    except Exception as error:
        return f"{PAGE} could not be written: {shorten(error or type(error).__name__, 300)}"
    return f"left out of {PAGE}: {' '.join(left_out)}" if left_out else None
