"""Puts a model, a benchmark, an order and the user's own values into a recipe, line by line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kifuse.benchmarks.catalog import BENCHMARKS
from kifuse.errors import ConfigError, did_you_mean
from kifuse.models.catalog import BUNDLED, is_model_folder
from kifuse.recipes.catalog import WRITTEN_FOR, Paper, read_data, read_recipe, recipe_paper, rows_of
from kifuse.recipes.lines import Line, as_yaml, format_recipe, parse_recipe

_BY_USER = "yours"

_TELL_NOTHING = {"output", "data.path", "data.benchmark", "data.order", "model.name"}
"""Keys that do not go into the name of the output folder, even if the user sets them."""


@dataclass(frozen=True)
class Filled:
    """A recipe with all the user's choices filled in.

    Attributes:
        text: The configuration, ready to be written.
        model: The model's name as the user typed it.
        benchmark: Name of the benchmark.
        order: Number of the benchmark's order.
        needs_data: Whether the user still has to say where the data is.
    """

    text: str
    model: str
    benchmark: str
    order: int
    needs_data: bool


def model_names() -> list[str]:
    """The models from the papers for which every recipe can be filled in."""
    return [WRITTEN_FOR, *next(iter(read_data("models.yaml").values()))]


def fill_recipe(
    name: str,
    *,
    model: str = WRITTEN_FOR,
    benchmark: str | None = None,
    order: int | None = None,
    data: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Filled:
    """Makes the user's own configuration from a recipe.

    Args:
        name: A name of ``recipe_names()``.
        model: A name of ``model_names()``, or any other model: the name of a bundled one, a hub id or a
            folder.
        benchmark: A name of ``kifuse ls benchmarks``; None takes the recipe's own.
        order: Number of the benchmark's order; None takes the recipe's order, or the benchmark's first.
        data: The folder that holds the data.
        settings: The user's own values, by dotted keys that the recipe has.

    Returns:
        The configuration's text, and the facts it was made for.

    Raises:
        ConfigError: There is no such recipe, model, benchmark, order or key.
    """
    heading, values = parse_recipe(read_recipe(name))
    paper = recipe_paper(name)
    lines = {value.key: value for value in values}
    benchmark, order = _choose_order(lines, benchmark, order)
    given = dict(settings or {})
    _check_keys(given, lines)
    changes = {
        **_model_changes(paper, name, model),
        **_data_changes(name, lines, benchmark, order, data),
        "output": (_output(name, model, benchmark, order, given), lines["output"].source),
        **{key: (value, _BY_USER) for key, value in given.items()},
    }
    filled = [_changed(line, *changes[line.key]) if line.key in changes else line for line in values]
    heading += ["", *_origin(paper, name, model, benchmark, given)]
    missing = "data.path" not in changes
    return Filled(format_recipe(heading, filled), model, benchmark, order, missing)


def _changed(line: Line, value: Any, source: str) -> Line:
    return replace(line, text=as_yaml(value), source=source)


def _choose_order(lines: Mapping[str, Line], benchmark: str | None, order: int | None) -> tuple[str, int]:
    own = lines["data.benchmark"].text
    wanted = own if benchmark is None else benchmark
    if wanted not in BENCHMARKS:
        nearest = did_you_mean(wanted, BENCHMARKS)
        raise ConfigError(f"--benchmark: found {wanted!r}, expected one of {', '.join(BENCHMARKS)}.{nearest}")
    orders = list(BENCHMARKS[wanted].orders)
    if order is None:
        return wanted, int(lines["data.order"].text) if wanted == own else orders[0]
    if order not in orders:
        others = [name for name, each in BENCHMARKS.items() if order in each.orders and name != wanted]
        advice = f" {' and '.join(others)} have an order {order}. Give --benchmark as well." if others else ""
        raise ConfigError(f"--order: found {order}, expected one of {_orders(wanted)} ({wanted}).{advice}")
    return wanted, order


def _orders(benchmark: str) -> str:
    return ", ".join(map(str, BENCHMARKS[benchmark].orders))


def _check_keys(given: Mapping[str, Any], lines: Mapping[str, Line]) -> None:
    for key in given:
        if key not in lines:
            nearest = did_you_mean(key, lines)
            raise ConfigError(
                f"--set {key}: found a key that the recipe does not have, expected one of its own.{nearest} "
                "Other keys can be added in the copied file."
            )


def _data_changes(
    recipe: str, lines: Mapping[str, Line], benchmark: str, order: int, data: str | None
) -> dict[str, tuple[Any, str]]:
    changes: dict[str, tuple[Any, str]] = {}
    other = benchmark != lines["data.benchmark"].text
    if other:
        there = any(benchmark in row.published for _, row in rows_of(recipe))
        source = (
            "a benchmark of the same table"
            if there
            else "your choice; the paper's table has no figure for it"
        )
        changes["data.benchmark"] = (benchmark, source)
    if other or str(order) != lines["data.order"].text:
        changes["data.order"] = (order, f"one of the orders {_orders(benchmark)}; see 'kifuse ls benchmarks'")
    if data is not None:
        changes["data.path"] = (data, _BY_USER)
    elif BENCHMARKS[benchmark].bundled is not None:
        changes["data.path"] = (None, "the benchmark comes with kifuse")
    return changes


def _model_changes(paper: Paper, recipe: str, model: str) -> dict[str, tuple[Any, str]]:
    if model == WRITTEN_FOR:
        return {}
    models = read_data("models.yaml")
    known = models.get(paper.name, models["others"])
    if model in known:
        entries = {**known[model], **models.get(recipe, {}).get(model, {})}
        return {key: (entry["value"], entry["from"]) for key, entry in entries.items()}
    if model in BUNDLED or "/" in model or is_model_folder(model):
        return {
            "model.name": (model, _BY_USER),
            "model.precision": ("auto", "kifuse's default, as the model is not one of the paper's"),
            "model.adapter.target_modules": (None, "query and value projections, as in the paper"),
        }
    nearest = did_you_mean(model, [*model_names(), *BUNDLED])
    raise ConfigError(
        f"--model: found {model!r}, expected one of {', '.join(model_names())}, "
        f"a name of 'kifuse ls models', a hub id or a folder.{nearest}"
    )


def _output(name: str, model: str, benchmark: str, order: int, given: Mapping[str, Any]) -> str:
    """A separate folder for each combination, so that one run does not continue another."""
    own = [f"{key.rpartition('.')[2]}-{value}" for key, value in given.items() if key not in _TELL_NOTHING]
    parts = [name, Path(model).name, benchmark, str(order), *own]
    return "runs/" + re.sub(r"[^\w.-]+", "-", "-".join(parts))


def _origin(paper: Paper, name: str, model: str, benchmark: str, given: Mapping[str, Any]) -> list[str]:
    """List the rows that the configuration gives and their published figures, for the head of the file."""
    rows = [(by, row) for by, row in rows_of(name) if row.model in (WRITTEN_FOR, model)]
    varied = {key for _, row in rows for key in row.settings}
    own = {key: value for key, value in given.items() if key in varied}
    lines = []
    for by, row in rows:
        if row.settings == own:
            published = row.published.get(benchmark)
            figures = f"; published for {row.model}: {by.figures(published)}" if published else ""
            place = row.table if by == paper else f"{by.title}, {row.table}"
            lines.append(f"  {place}, {row.name}{figures}")
    return [
        f"{paper.title} ({paper.where}), {benchmark}{':' if lines else ''}",
        *lines,
        "The comment behind each value says where it comes from.",
        f"The authors' scripts: {paper.code}",
    ]
