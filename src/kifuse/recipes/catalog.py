"""The list of recipes, the table row that each recipe gives, and the row's published figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from kifuse.errors import ConfigError, did_you_mean

FOLDER = Path(__file__).parent

WRITTEN_FOR = "t5-large"
"""The model that the recipe files are written for, and that most figures were published for."""


@dataclass(frozen=True)
class PublishedRow:
    """A row of a paper's table.

    Attributes:
        table: The paper's name for the table.
        name: The paper's name for the row.
        recipe: The recipe that gives the row; None for a system that kifuse does not have.
        settings: Changes of the row to the recipe, by dotted key.
        model: The model that the figures are for.
        published: The figures by benchmark, one for each of the paper's metrics; None if not known.
    """

    table: str
    name: str
    recipe: str | None
    settings: Mapping[str, Any]
    model: str
    published: Mapping[str, tuple[float | None, ...]]

    @property
    def arguments(self) -> str:
        """The arguments of ``kifuse cp`` that give the row; empty without a recipe."""
        if self.recipe is None:
            return ""
        model = f" --model {self.model}" if self.model != WRITTEN_FOR else ""
        return self.recipe + model + "".join(f" --set {key}={value}" for key, value in self.settings.items())


@dataclass(frozen=True)
class Paper:
    """A paper whose tables have recipes.

    Attributes:
        name: The folder of its recipes.
        title: A short name of the paper.
        arxiv: The paper's number on arXiv; if it is not known to be there, the place where it was published.
        code: The address of the authors' scripts.
        metrics: The metrics of its figures, in their order.
        rows: The rows of its tables, in their order.
    """

    name: str
    title: str
    arxiv: str
    code: str
    metrics: tuple[str, ...]
    rows: tuple[PublishedRow, ...]

    @property
    def where(self) -> str:
        """Where the paper can be found, e.g. ``arXiv 2502.17510``."""
        return f"arXiv {self.arxiv}" if self.arxiv[:1].isdigit() else self.arxiv

    def in_table(self, values: tuple[float | None, ...] | None) -> str:
        """Published figures for a table, e.g. ``78.4 / -2.8``; empty if nothing is known."""
        known = "/".join("" if value is None else str(value) for value in values or ()).rstrip("/").split("/")
        return " / ".join(value or "?" for value in known) if known != [""] else ""

    def figures(self, values: tuple[float | None, ...]) -> str:
        """Published figures in words, e.g. ``OP 78.4, BWT -2.8``."""
        pairs = zip(self.metrics, values, strict=True)
        return ", ".join(f"{metric} {value}" for metric, value in pairs if value is not None)


@cache
def papers() -> dict[str, Paper]:
    """The papers by name, with the rows of their tables."""
    found = {}
    for name, facts in read_data("papers.yaml").items():
        rows = [
            _row(table, entry, len(facts["metrics"]))
            for table, entries in facts["tables"].items()
            for entry in entries
        ]
        metrics = tuple(facts["metrics"])
        found[name] = Paper(name, facts["title"], facts["arxiv"], facts["code"], metrics, tuple(rows))
    return found


def _row(table: str, entry: dict[str, Any], metrics: int) -> PublishedRow:
    known = {"recipe", "row", "set", "model"}
    published = {
        benchmark: (*values, *[None] * (metrics - len(values)))
        for benchmark, values in entry.items()
        if benchmark not in known
    }
    model = entry.get("model", WRITTEN_FOR)
    return PublishedRow(table, entry["row"], entry.get("recipe"), entry.get("set", {}), model, published)


def _rows() -> list[tuple[Paper, PublishedRow]]:
    """All rows of all papers, with their papers."""
    return [(paper, row) for paper in papers().values() for row in paper.rows]


def rows_of(recipe: str) -> list[tuple[Paper, PublishedRow]]:
    """The rows that a recipe gives, in every paper that has one; those of its own paper come first."""
    own = recipe_paper(recipe)
    found = [(paper, row) for paper, row in _rows() if row.recipe == recipe]
    return sorted(found, key=lambda pair: pair[0] is not own)


@cache
def read_data(name: str) -> dict[str, Any]:
    """Read a data file of this package."""
    return yaml.safe_load((FOLDER / name).read_text("utf-8"))


@cache
def _files() -> dict[str, Path]:
    """The recipes in the order of the papers' tables; each recipe is in the folder of its own paper."""
    files = {file.stem: file for file in FOLDER.glob("*/*.yaml")}
    return {name: files[name] for name in dict.fromkeys(row.recipe for _, row in _rows()) if name}


def recipe_names() -> list[str]:
    """The names of all recipes, in the order of the papers' tables."""
    return list(_files())


def recipe_paper(name: str) -> Paper:
    """The paper that a recipe is from."""
    return papers()[recipe_file(name).parent.name]


def recipe_file(name: str) -> Path:
    """Return the file of a recipe.

    Raises:
        ConfigError: There is no such recipe; the message names the most similar one.
    """
    if name not in _files():
        nearest = did_you_mean(name, _files())
        raise ConfigError(f"found {name!r}, expected the name of a recipe.{nearest} See 'kifuse ls recipes'.")
    return _files()[name]


def read_recipe(name: str) -> str:
    """Return the text of a recipe, which is a complete configuration for T5-large.

    Raises:
        ConfigError: There is no such recipe.
    """
    return recipe_file(name).read_text("utf-8")


def refuse_recipe_name(config: Path | None) -> None:
    """Refuses a recipe's name where a file is expected.

    Raises:
        ConfigError: There is no such file, but a recipe of that name; the message says how to get its file.
    """
    if config is not None and str(config) in _files() and not config.exists():
        raise ConfigError(
            f"{config}: found the name of a recipe, expected a configuration file. Run 'kifuse cp {config}' "
            f"to write your own copy, {config}.yaml."
        )
