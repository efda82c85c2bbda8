"""A table of tasks that are never trained on: our scores by category beside the published ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from kifuse.record.run_record import RunRecord
from kifuse.reporting.comparison_tables import mean_cell
from kifuse.reporting.run_groups import Group
from kifuse.reporting.tables import Cell, Table
from kifuse.reporting.watched import watched_names, watched_score
from kifuse.reporting.wording import clean, listed, number
from kifuse.reproducing.catalog import PaperTable, Unseen

MEASURE = "unseen"
"""The name that claims have for the mean over the categories."""


def category_of(unseen: Unseen, task: str) -> str | None:
    """Find the category of a watched task by its name; None if it has none."""
    for category, words in unseen.categories.items():
        if task.lower().startswith(words):
            return category
    return None


def of_category(unseen: Unseen, record: RunRecord, category: str) -> float | None:
    """Average the last scores of a category's tasks; None if none was scored."""
    names = [name for name in watched_names(record) if category_of(unseen, name) == category]
    return _mean([watched_score(record, name, -1) for name in names])


def of_all(unseen: Unseen, record: RunRecord) -> float | None:
    """Average the scores of the categories that have one."""
    return _mean([of_category(unseen, record, category) for category in unseen.categories])


def with_untrained(unseen: Unseen, rows: Mapping[str, Group]) -> dict[str, Group]:
    """Add the row for the model before any training, which is read from another row's runs.

    Args:
        unseen: What the table says about unseen tasks.
        rows: The runs of each row.
    """
    source = next((name for name in unseen.read_from if name in rows), None)
    if source is None:
        return dict(rows)
    runs = [replace(run, record=_before_training(run.record)) for run in rows[source].runs]
    return {unseen.untrained: Group(unseen.untrained, runs), **rows}


def unseen_table(table: PaperTable, unseen: Unseen, rows: Mapping[str, Group]) -> Table:
    """Put our scores beside the published ones: a line for each row, two columns for each category and mean.

    Args:
        table: The paper's table.
        unseen: What it says about unseen tasks.
        rows: The runs of each row, also of the row before any training.
    """
    scored = {name: None for g in rows.values() for run in g.runs for name in watched_names(run.record)}
    others = [name for name in scored if category_of(unseen, name) is None]
    heads = [part for each in (*unseen.categories, "mean") for part in (each, f"{each}, paper")]
    shown = Table(
        table.name,
        f"{table.paper.title}, {table.called}: {table.title}",
        ["row", *heads, *map(clean, others)],
    )
    for row, published in unseen.figures.items():
        group, cells = rows.get(row), [Cell(row)]
        measures = [lambda r, each=each: of_category(unseen, r, each) for each in unseen.categories]
        for measure, theirs in zip([*measures, lambda r: of_all(unseen, r)], published, strict=True):
            cells += [mean_cell(group.mean(measure) if group else None), Cell(number(theirs), theirs)]
        for name in others:
            mean = group.mean(lambda r, name=name: watched_score(r, name, -1)) if group else None
            cells.append(mean_cell(mean))
        shown.rows.append(cells)
    shown.notes = _notes(unseen, list(scored), others)
    return shown


def _notes(unseen: Unseen, scored: list[str], others: list[str]) -> list[str]:
    """Say which tasks stand for the paper's tasks, and over which categories the means are taken."""
    found = {
        category: [n for n in scored if category_of(unseen, n) == category] for category in unseen.categories
    }
    there = [category for category, names in found.items() if names]
    notes = [
        f"{unseen.untrained} is the model's score before the first task, read from the runs of "
        f"{' or '.join(unseen.read_from)}."
    ]
    if there:
        of = "; ".join(f"{category}: {', '.join(map(clean, found[category]))}" for category in there)
        notes.append(f"Tasks used in place of the paper's three of each category: {of}.")
    if there and len(there) < len(found):
        places = [list(unseen.categories).index(category) for category in there]
        same = [
            f"{row} {number(sum(values[i] for i in places) / len(places))}"
            for row, values in unseen.figures.items()
        ]
        notes.append(
            f"Our means are over {listed(there)} only; the paper's means over the same: {', '.join(same)}."
        )
    if others:
        notes.append(
            f"In no category of the paper and in no mean: {listed([clean(name) for name in others])}."
        )
    return notes


def _before_training(record: RunRecord) -> RunRecord:
    """Reduce a record to the scores of watched tasks before the first task."""
    return record.model_copy(update={"watch_scores": [s for s in record.watch_scores if s.after == 0]})


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
