"""The runs of a table: one grid for each benchmark, with the rows of the table as its variants."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kifuse.benchmarks.catalog import BENCHMARKS
from kifuse.comparing.compare_section import Variant
from kifuse.comparing.grid import Grid, load_grid
from kifuse.config.reading import read_setting
from kifuse.errors import ConfigError
from kifuse.recipes.catalog import PublishedRow
from kifuse.recipes.filling import fill_recipe
from kifuse.reproducing.budgets import Budget
from kifuse.reproducing.catalog import PaperTable, paper_tables, with_models

_OF_THE_GRID = {"model.name", "data.benchmark", "data.path", "data.order", "training.seed", "output"}
"""Keys of a recipe that are set for the grid as a whole."""

_ELSEWHERE = {
    "q": "q_proj",
    "k": "k_proj",
    "v": "v_proj",
    "o": "o_proj",
    "wi": "up_proj",
    "wo": "down_proj",
}
"""The names that models like LLaMA have for the layers of T5; their gate is left out."""


@dataclass(frozen=True)
class Wanted:
    """What a user asks for.

    Attributes:
        table: The table or figure.
        budget: How much it may cost.
        data: The folder with the benchmark's data, or with a folder for each layout, such as `superni`.
        output: The folder for everything; each benchmark has a folder in it.
        models: Names of models, several for a figure that compares models. Empty for the budget's model; with
            the papers' budget, empty for the figure's own models.
        benchmarks: Names of the table's benchmarks; empty for all.
        orders: Numbers of orders; empty for the paper's.
        seeds: Seeds; empty for the budget's.
        rows: Names of rows; empty for all.
        settings: Values by dotted key for all rows, over those of the budget.
        watch: Folders of tasks that are scored before the first task and at the end, and never trained on.
    """

    table: PaperTable
    budget: Budget
    data: Path
    output: Path
    models: tuple[str, ...] = ()
    benchmarks: tuple[str, ...] = ()
    orders: tuple[int, ...] = ()
    seeds: tuple[int, ...] = ()
    rows: tuple[str, ...] = ()
    settings: Mapping[str, Any] | None = None
    watch: tuple[Path, ...] = ()

    @classmethod
    def of(cls, table: PaperTable, budget: Budget, models: Sequence[str] = (), **more: Any) -> Wanted:
        """Make the wanted runs; a figure over several models has its rows once for each model.

        Raises:
            ConfigError: Several models are named for a table about one model, or no tasks to watch are named
                for a table about unseen tasks.
        """
        if not models and table.models and budget.name == "paper":
            models = table.models
        if len(models) > 1 and not table.models:
            comparing = ", ".join(name for name, each in paper_tables().items() if each.models)
            raise ConfigError(
                f"--model: found {len(models)} models, expected one, as {table.name} does not compare "
                f"models. These do: {comparing}."
            )
        if table.unseen is not None and not more.get("watch"):
            raise ConfigError(
                "--watch: found nothing, expected a folder of tasks that are never trained on, as "
                f"{table.name} scores such tasks. Their names begin with "
                f"{', '.join(table.unseen.categories)}."
            )
        many = len(models) > 1
        return cls(with_models(table, models) if many else table, budget, models=tuple(models), **more)

    def model_of(self, row: PublishedRow) -> str:
        """The model that a row runs with."""
        return row.model if len(self.models) > 1 else (self.models or (self.budget.model,))[0]


def label_of(row: PublishedRow) -> str:
    """The name of a row's folder: letters, digits and single signs between them."""
    return re.sub(
        r"[^A-Za-z0-9.]+", "-", row.name.replace("%", "pct").replace("+ ", "with ").replace("- ", "no ")
    )


def chosen_rows(wanted: Wanted) -> list[PublishedRow]:
    """The rows that are run.

    Raises:
        ConfigError: One is named that the table does not have.
    """
    known, chosen, parts = [row.name for row in wanted.table.rows], set(), list(wanted.rows)
    while parts:
        # a row's own name may hold commas
        name = next((n for i in range(len(parts), 0, -1) if (n := ", ".join(parts[:i])) in known), None)
        if name is None:
            raise ConfigError(f"--rows: found {parts[0]!r}, expected one of {'; '.join(known)}.")
        chosen.add(name)
        parts = parts[name.count(", ") + 1 :]
    return [row for row in wanted.table.rows if not chosen or row.name in chosen]


def grids(wanted: Wanted) -> dict[str, Grid]:
    """One grid for each benchmark of the table.

    Raises:
        ConfigError: Something that is asked for does not exist; the message holds every problem.
    """
    orders = wanted.table.orders or {}
    names = wanted.benchmarks or tuple(orders)
    for name in names:
        if name not in orders:
            raise ConfigError(f"--benchmark: found {name!r}, expected one of {', '.join(orders)}.")
    found = {}
    for name in names:
        numbers = wanted.orders or orders[name]
        rows = chosen_rows(wanted)
        variants = [_variant(row, wanted, name, numbers[0]) for row in rows]
        overrides = {
            "model.name": _recipe(rows[0], wanted, name, numbers[0])["model.name"],
            "data.benchmark": name,
            "data.path": str(_data_of(wanted, name)),
            "output": str(wanted.output / name),
        }
        if wanted.watch:
            overrides |= {"watch.tasks": [str(folder) for folder in wanted.watch], "watch.when": "end"}
        found[name] = load_grid(
            None,
            overrides,
            variants=variants,
            orders=numbers,
            seeds=wanted.seeds or wanted.budget.seeds,
            flags={"data.path": "--data", "model.name": "--model", "output": "--output"},
            check_files=True,
        )
    return found


def _recipe(row: PublishedRow, wanted: Wanted, benchmark: str, order: int) -> dict[str, Any]:
    """A row's recipe by dotted key, filled in for the model and the benchmark."""
    model = wanted.model_of(row)
    filled = fill_recipe(
        row.recipe or "",
        model=model,
        benchmark=benchmark,
        order=order,
        data=str(_data_of(wanted, benchmark)),
        settings={k: v for k, v in _for_model(row.settings, model).items() if not _measured(k)},
    )
    return dict(_flat(read_setting(filled.text)))


def _data_of(wanted: Wanted, benchmark: str) -> Path:
    """The folder of a benchmark's data: the named folder, or the folder of the benchmark's layout in it."""
    own = wanted.data / BENCHMARKS[benchmark].layout
    return own if own.is_dir() else wanted.data


def _measured(key: str) -> bool:
    """Whether a key only says what is measured for the record; a recipe has no such key."""
    return key.startswith("record.")


def _variant(row: PublishedRow, wanted: Wanted, benchmark: str, order: int) -> Variant:
    """A row as a variant: its recipe, then the budget, then what the row itself varies."""
    recipe = _recipe(row, wanted, benchmark, order)
    budget = wanted.budget.settings_for(benchmark)
    if "memory.share" in row.settings or any("memory.share" in each.settings for each in wanted.table.rows):
        budget.pop("memory.per_task", None)  # the table is about the share
    if wanted.table.full_matrix:
        budget["evaluation.full_matrix"] = True
    varied = set(row.settings)
    values = {**recipe, **{key: value for key, value in budget.items() if key not in varied}}
    values |= {key: value for key, value in row.settings.items() if _measured(key)}
    values |= wanted.settings or {}
    own = {key.removeprefix("method."): value for key, value in values.items() if key.startswith("method.")}
    changes = {k: v for k, v in values.items() if not k.startswith("method.") and k not in _OF_THE_GRID}
    if len(wanted.models) > 1:
        # recipes of several papers take other checkpoints for one name: all rows take the first row's
        first = next(each for each in chosen_rows(wanted) if each.model == row.model)
        changes["model.name"] = _recipe(first, wanted, benchmark, order)["model.name"]
    return Variant(label_of(row), own.pop("name"), own, changes)


def _for_model(settings: Mapping[str, Any], model: str) -> dict[str, Any]:
    """A row's own settings, with the layers called as the model calls them."""
    found = dict(settings)
    layers = found.get("model.adapter.target_modules")
    if layers is not None and "t5" not in model.lower():
        found["model.adapter.target_modules"] = [_ELSEWHERE[name] for name in layers]
    return found


def _flat(values: Mapping[str, Any], above: str = "") -> list[tuple[str, Any]]:
    """Nested sections as dotted keys."""
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        found += _flat(value, f"{above}{key}.") if isinstance(value, dict) else [(f"{above}{key}", value)]
    return found
