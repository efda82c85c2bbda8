"""The papers' tables and figures by name: rows, orders, claims, and the pictures that show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from kifuse.errors import ConfigError, did_you_mean
from kifuse.recipes.catalog import WRITTEN_FOR, Paper, PublishedRow, papers

FILE = Path(__file__).parent / "tables.yaml"


@dataclass(frozen=True)
class Claim:
    """What a paper says about its own figures.

    Attributes:
        text: The claim in words.
        measure: AP, FWT, BWT or a measure of the table's own; higher is better in each.
        above: The row that is said to be higher.
        below: The rows that are said to be lower.
    """

    text: str
    measure: str
    above: str
    below: tuple[str, ...]


@dataclass(frozen=True)
class Unseen:
    """What a table says about tasks that are never trained on.

    Attributes:
        categories: For each category, how the names of its tasks begin.
        figures: Published figures by row, one for each category and their mean.
        untrained: Name of the row for the model before any training; this row is not run.
        read_from: Rows whose scores before training are used for it; the first one that was run counts.
    """

    categories: Mapping[str, tuple[str, ...]]
    figures: Mapping[str, tuple[float, ...]]
    untrained: str
    read_from: tuple[str, ...]


@dataclass(frozen=True)
class PaperTable:
    """A table or a figure of a paper.

    Attributes:
        name: Its name in the command, such as `rkif-table-2`.
        paper: The paper.
        title: What it shows.
        rows: Its rows.
        orders: The task orders whose mean the paper gives, by benchmark.
        claims: What the paper says about the figures.
        pictures: Names of the comparison's pictures that show it.
        of_each_run: Names of the pictures of single runs that show it.
        full_matrix: Whether all scores in between are needed.
        note: What in it is kifuse's own choice.
        unseen: What it says about tasks that are never trained on; None if it is about other tasks.
        models: The models that a figure compares; empty if it is about one model.
        of_models: Its published figures by model and benchmark, if it has one row.
        minutes: Published minutes an epoch by row, one for each of `models`; empty if there are none.
        properties: For a table without figures: kifuse's name of each method, by the paper's name.
    """

    name: str
    paper: Paper
    title: str
    rows: tuple[PublishedRow, ...] = ()
    orders: Mapping[str, tuple[int, ...]] | None = None
    claims: tuple[Claim, ...] = ()
    pictures: tuple[str, ...] = ()
    of_each_run: tuple[str, ...] = ()
    full_matrix: bool = False
    note: str = ""
    unseen: Unseen | None = None
    models: tuple[str, ...] = ()
    of_models: Mapping[str, Mapping[str, tuple[float | None, ...]]] = field(default_factory=dict)
    minutes: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    properties: Mapping[str, str] | None = None

    @property
    def called(self) -> str:
        """What the paper calls it: `Table 2`, `Fig. 6`."""
        kind, _, number = self.name.partition("-")[2].partition("-")
        roman = {"1": "I", "2": "II", "3": "III", "4": "IV", "5": "V", "6": "VI"}
        if kind == "figure":
            return f"Fig. {number}"
        return f"Table {roman[number] if self.name.startswith('kif-') else number}"

    def minutes_of(self, row: PublishedRow) -> float | None:
        """Return the minutes an epoch that were published for a row and its model; None if there are none."""
        found = self.minutes.get(row.name.removesuffix(f", {short(row.model)}"))
        return found[self.models.index(row.model)] if found and row.model in self.models else None


@cache
def paper_tables() -> dict[str, PaperTable]:
    """Every table and figure by its name, in the papers' order."""
    found = {}
    for name, entry in yaml.safe_load(FILE.read_text("utf-8")).items():
        paper = papers()[entry["paper"]]
        rows = tuple(row for row in paper.rows if row.table == entry.get("table"))
        rows += tuple(_own_row(name, row) for row in entry.get("rows", ()))
        found[name] = PaperTable(
            name=name,
            paper=paper,
            title=entry["title"],
            rows=rows,
            orders={benchmark: tuple(orders) for benchmark, orders in entry.get("orders", {}).items()},
            claims=tuple(
                Claim(each["text"], each["measure"], each["above"], tuple(each["below"]))
                for each in entry.get("claims", ())
            ),
            pictures=tuple(entry.get("pictures", ())),
            of_each_run=tuple(entry.get("of_each_run", ())),
            full_matrix=entry.get("full_matrix", False),
            note=entry.get("note", ""),
            unseen=_unseen(entry["unseen"]) if "unseen" in entry else None,
            models=tuple(entry.get("models", ())),
            of_models={
                model: {benchmark: tuple(values) for benchmark, values in found.items()}
                for model, found in entry.get("of_models", {}).items()
            },
            minutes={row: tuple(values) for row, values in entry.get("minutes", {}).items()},
            properties=entry.get("properties"),
        )
    return dict(sorted(found.items(), key=lambda item: _place(item[0])))


def paper_table(name: str) -> PaperTable:
    """A table or figure by its name.

    Raises:
        ConfigError: There is no table of that name.
    """
    known = paper_tables()
    if name not in known:
        nearest = did_you_mean(name, known)
        raise ConfigError(
            f"found {name!r}, expected the name of a table or figure.{nearest} See 'kifuse reproduce list'."
        )
    return known[name]


def with_models(table: PaperTable, models: Sequence[str]) -> PaperTable:
    """Make a figure over several models: each row and each claim is there once for each model.

    Args:
        table: The figure, with the published figures of its rows for the models that have any.
        models: Names of models.
    """
    rows = {(row.name, model): row for row in table.rows for model in models}
    known = {(row.name, model): row.published for row in table.rows for model in (row.model,)}
    known |= {(row.name, model): found for row in table.rows for model, found in table.of_models.items()}
    return replace(
        table,
        rows=tuple(
            replace(row, name=f"{name}, {short(model)}", model=model, published=known.get((name, model), {}))
            for (name, model), row in rows.items()
        ),
        claims=tuple(
            replace(
                claim,
                text=f"{claim.text}, {short(model)}",
                above=f"{claim.above}, {short(model)}",
                below=tuple(f"{name}, {short(model)}" for name in claim.below),
            )
            for claim in table.claims
            for model in models
        ),
    )


def short(model: str) -> str:
    """A model's name, or the last part of its folder or hub id."""
    return Path(model).name


def _own_row(table: str, entry: Mapping[str, Any]) -> PublishedRow:
    """A row of a figure, for which no numbers are published."""
    return PublishedRow(table, entry["row"], entry["recipe"], entry.get("set", {}), WRITTEN_FOR, {})


def _unseen(entry: Mapping[str, Any]) -> Unseen:
    return Unseen(
        categories={name: tuple(words) for name, words in entry["categories"].items()},
        figures={row: tuple(values) for row, values in entry["figures"].items()},
        untrained=entry["untrained"]["row"],
        read_from=tuple(entry["untrained"]["rows"]),
    )


def _place(name: str) -> tuple[bool, bool, int]:
    """The sort key: KIF before Recurrent-KIF, tables before figures, by number."""
    paper, kind, number = name.split("-")
    return paper != "kif", kind == "figure", int(number)
