"""Tasks that were scored beside the stream and never trained on: what changed of them."""

from __future__ import annotations

from collections.abc import Sequence

from kifuse.record.run_record import RunRecord
from kifuse.reporting.comparison_tables import mean_cell
from kifuse.reporting.run_groups import Group
from kifuse.reporting.tables import Cell, Table
from kifuse.reporting.wording import clean, number

NAME, TITLE = "watched", "Tasks that are watched and never trained on"
_NOTE = "They are in no average of this page, and were in no training and no memory."


def watched_table(record: RunRecord) -> Table | None:
    """The scores of a run's watched tasks at every moment, and their change since the first; None without."""
    if not record.watched or not record.watch_scores:
        return None
    names = [clean(entry.name) for entry in record.watched]
    table = Table(NAME, TITLE, ["after", *names])
    learned = [clean(task.name) for task in record.tasks]
    scores = {(s.after, s.task): s.score for s in record.watch_scores}
    for after in sorted({after for after, _ in scores}):
        task = f" {learned[after - 1]}" if 0 < after <= len(learned) else ""
        row = [scores.get((after, i)) for i in range(len(names))]
        moment = f"{after}{task}" if after else "before training"
        table.rows.append([Cell(moment), *(Cell(number(each), each) for each in row)])
    changes = [_change(record, i) for i in range(len(names))]
    table.total = [Cell("change"), *(Cell(number(each, sign=True), each) for each in changes)]
    table.notes.append(f"{_NOTE} The change is from the first score to the last.")
    return table


def watched_by_method(groups: Sequence[Group]) -> Table | None:
    """First and last score of every watched task with every method, and the change; None without any."""
    table = Table(NAME, TITLE, ["watched task", "method", "first", "last", "change"])
    names = list(dict.fromkeys(w.name for g in groups for run in g.runs for w in run.record.watched))
    for name in names:
        for group in groups:
            means = [group.mean(lambda r, name=name, at=at: _score(r, name, at)) for at in (0, -1)]
            means.append(group.mean(lambda r, name=name: _changed(r, name)))
            if any(means):
                cells = [mean_cell(mean, sign=place == 2) for place, mean in enumerate(means)]
                table.rows.append([Cell(clean(name)), Cell(group.label), *cells])
    table.notes.append(f"{_NOTE} Unfinished runs are left out.")
    return table if table.rows else None


def _scores(record: RunRecord, index: int) -> list[float]:
    return [s.score for s in sorted(record.watch_scores, key=lambda s: s.after) if s.task == index]


def _change(record: RunRecord, index: int) -> float | None:
    found = _scores(record, index)
    return found[-1] - found[0] if len(found) > 1 else None


def _place(record: RunRecord, name: str) -> int | None:
    return next((i for i, entry in enumerate(record.watched) if entry.name == name), None)


def _score(record: RunRecord, name: str, at: int) -> float | None:
    place = _place(record, name)
    found = [] if place is None else _scores(record, place)
    return found[at] if found else None


def _changed(record: RunRecord, name: str) -> float | None:
    place = _place(record, name)
    return None if place is None else _change(record, place)
