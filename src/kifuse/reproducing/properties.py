"""A table of the methods' properties, without figures, made from kifuse's own list of methods."""

from __future__ import annotations

from kifuse.method_catalog import METHODS
from kifuse.reporting.tables import Cell, Table
from kifuse.reproducing.catalog import PaperTable


def properties_table(table: PaperTable) -> Table:
    """Say what kifuse knows about each method without running it.

    Args:
        table: The paper's table; it names kifuse's method for each row.
    """
    shown = Table(
        table.name,
        f"{table.paper.title}, {table.called}: {table.title}",
        [
            "row",
            "method here",
            "what it is given of old data",
            "keeps no old data",
            "answers without a task id",
        ],
    )
    for row, name in (table.properties or {}).items():
        given = METHODS[name].data_class
        free = given in ("replay-free", "task id given")
        marks = [Cell("yes" if each else "no") for each in (free, given != "task id given")]
        shown.rows.append([Cell(row), Cell(name), Cell(given), *marks])
    shown.notes = [
        "All of them train an adapter here and leave the model's own weights as they are "
        "(parameter-efficient).",
        "Knowledge transfer is not a property to list here: FWT measures it, in kif-table-1, and unseen "
        "tasks in kif-table-3.",
        "The paper's own marks are not available here.",
    ]
    return shown
