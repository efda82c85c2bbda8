"""Tables for a terminal: runs side by side, ranked methods, the score matrix. Names are never markup."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from kifuse.record.run_record import RunRecord
from kifuse.reporting.comparison_tables import methods_table, metric, side_by_side
from kifuse.reporting.run_groups import Group
from kifuse.reporting.sweeps import Sweep, sweep_table
from kifuse.reporting.tables import Cell, Table
from kifuse.reporting.wording import MINUS, NONE

# With this many tasks or more, a matrix has only numbers as heads and no decimals, to fit 80 columns.
_MANY_TASKS = 7
_WIDTH = 78

METRICS = ("AP", "BWT", "FWT")

COLUMNS = {
    "method": "method",
    "class": "class",
    "runs": "runs",
    **{name: name for name in METRICS},
    "replayed": "replayed",
    "extra passes": "extra",
    "training, s": "train, s",
}
"""The heads of `methods_table` that a terminal has room for, and their names there."""


def comparison_table(records: Sequence[RunRecord], labels: Sequence[str] | None = None) -> RichTable:
    """Show runs side by side: every task's score at the end, the metrics, and the costs.

    Args:
        records: The runs, usually of the same tasks.
        labels: A name for each run; by default the name of its method.

    Returns:
        A table for a terminal. Two runs fit into 80 columns. Notes below it say why a value is missing.

    Raises:
        RunError: If there are no records, or not one label for each.
    """
    table = side_by_side(records, labels)
    shown = _table(table.title)
    shown.add_column("", overflow="fold")
    for head in table.heads[1:]:
        shown.add_column(Text(head), justify="right", overflow="fold")
    for place, row in enumerate(table.rows):
        shown.add_row(*map(_text, row), end_section=place + 1 in table.sections)
    if table.notes:
        shown.caption = Text("\n".join(table.notes))
    return shown


def plain_table(table: Table) -> RichTable:
    """Make any table ready for a terminal, with its title and notes."""
    shown = _table(table.title)
    for place, head in enumerate(table.heads):
        shown.add_column(Text(head), justify="right" if table.numeric(place) else "left", overflow="fold")
    for row in table.lines():
        shown.add_row(*map(_text, row))
    if table.notes:
        shown.caption = Text("\n".join(table.notes).replace(MINUS, "-"))
    return shown


def ranked(groups: Sequence[Group]) -> list[Group]:
    """Sort groups by AP, the highest first; groups without AP come last."""

    def place(group: Group) -> float:
        mean = group.mean(metric("AP"))
        return float("inf") if mean is None else -mean.value

    return sorted(groups, key=place)


def ranking_table(groups: Sequence[Group]) -> RichTable:
    """List the methods, the best first: class, metrics with their spread, and costs.

    Args:
        groups: One or more.

    Returns:
        A table for a terminal. Its notes say why values are missing.
    """
    table = methods_table(ranked(groups), METRICS)
    shown = _table("Methods")
    shown.padding, shown.pad_edge, shown.show_edge = (0, 1, 0, 0), False, False
    places = [table.heads.index(head) for head in COLUMNS]
    for (head, name), place in zip(COLUMNS.items(), places, strict=True):
        side = "right" if table.numeric(place) else "left"
        # if there is no room, spreads go below their means, and long names are broken
        shown.add_column(Text(name), justify=side, overflow="fold", no_wrap=head not in ("method", *METRICS))
    for row in table.rows:
        cells = [row[place].text + (f" ±{row[place].aside}" if row[place].aside else "") for place in places]
        # the spread of the time is left out
        shown.add_row(*map(Text, [*cells[:-1], row[places[-1]].text]))
    if table.notes:
        shown.caption = Text("\n".join(table.notes))
    return shown


def sweep_shown(sweep: Sweep) -> RichTable:
    """Show the values that were tried, with their mean AP on dev, and which one is chosen."""
    table = sweep_table(sweep)
    shown = plain_table(table)
    for place, row in enumerate(table.rows):
        shown.rows[place].style = "bold" if row[-1].text else ""
    return shown


def matrix_table(record: RunRecord) -> RichTable:
    """Show the score of each task after each learned task.

    Args:
        record: The run.

    Returns:
        A table for a terminal, with a row for each moment and a column for each task. The score of a task
        that was just learned is bold.
    """
    matrix = record.matrix()
    names = matrix.tasks
    many = len(names) >= _MANY_TASKS
    shown = _table("Scores")
    if many:
        shown.padding, shown.pad_edge = 0, False
        # Numbers never wrap, so the names must: 16 tasks fit into 80 columns.
        shown.add_column("after", no_wrap=True, max_width=max(8, _WIDTH - 4 * len(names)))
    else:
        shown.add_column("", overflow="fold")
    for place, name in enumerate(names, start=1):
        head = Text(str(place) if many else f"{place} {name}")
        shown.add_column(head, justify="right", overflow="fold", no_wrap=many, min_width=3 if many else None)
    gaps = False
    for after in range(len(names) + 1):
        scores = [matrix.get(after, task) for task in range(len(names))]
        if all(score is None for score in scores):
            continue
        gaps = gaps or None in scores
        cells = [
            Text("-", "dim")
            if score is None
            else Text(f"{score:.{0 if many else 1}f}", "bold" * (task + 1 == after))
            for task, score in enumerate(scores)
        ]
        moment = f"{'' if many else 'after '}{after} {names[after - 1]}" if after else "before training"
        shown.add_row(Text(moment), *cells)
    notes = ["- not scored"] if gaps else []
    if not shown.row_count:
        notes = ["nothing has been scored yet"]
    if many:
        notes.append("rounded to whole numbers")
    shown.caption = Text("; ".join(notes)) if notes else None
    return shown


def _table(title: str) -> RichTable:
    return RichTable(box=box.SIMPLE_HEAD, title=Text(title), title_justify="left", caption_justify="left")


def _text(cell: Cell) -> Text:
    """Write a cell with characters that every terminal has, and its note in a lighter colour."""
    shown = cell.text if cell.value is None else cell.text.replace(MINUS, "-")
    text = Text("-" if shown == NONE else shown)
    if cell.aside:
        text.append(f" ±{cell.aside}")
    return text.append(f" {cell.note}", style="dim") if cell.note else text
