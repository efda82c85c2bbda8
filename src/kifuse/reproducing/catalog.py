"""The papers' tables and figures by name: rows, orders, claims, and the pictures that show them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
        measure: AP, FWT or BWT; higher is better in each.
        above: The row that is said to be higher.
        below: The rows that are said to be lower.
    """

    text: str
    measure: str
    above: str
    below: tuple[str, ...]


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
        missing: Why it cannot be run by name; empty if it can.
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
    missing: str = ""

    @property
    def called(self) -> str:
        """What the paper calls it: `Table 2`, `Fig. 6`."""
        kind, _, number = self.name.partition("-")[2].partition("-")
        roman = {"1": "I", "2": "II", "3": "III", "4": "IV", "5": "V", "6": "VI"}
        if kind == "figure":
            return f"Fig. {number}"
        return f"Table {roman[number] if self.name.startswith('kif-') else number}"


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
            missing=entry.get("missing", ""),
        )
    return dict(sorted(found.items(), key=lambda item: _place(item[0])))


def paper_table(name: str) -> PaperTable:
    """A table or figure that can be run.

    Raises:
        ConfigError: There is no table of that name, or it cannot be run by name.
    """
    known = paper_tables()
    if name not in known:
        nearest = did_you_mean(name, known)
        raise ConfigError(
            f"found {name!r}, expected the name of a table or figure.{nearest} See 'kifuse reproduce list'."
        )
    if known[name].missing:
        raise ConfigError(f"{name}: {known[name].called} is not run by its name: {known[name].missing}.")
    return known[name]


def _own_row(table: str, entry: Mapping[str, Any]) -> PublishedRow:
    """A row of a figure, for which no numbers are published."""
    return PublishedRow(table, entry["row"], entry["recipe"], entry.get("set", {}), WRITTEN_FOR, {})


def _place(name: str) -> tuple[bool, bool, int]:
    """The sort key: KIF before Recurrent-KIF, tables before figures, by number."""
    paper, kind, number = name.split("-")
    return paper != "kif", kind == "figure", int(number)
