"""Tables of the watched tasks, which are scored but never trained on: how their scores changed."""

from __future__ import annotations

from collections.abc import Sequence

from kifuse.record.parts import ScoreRecord
from kifuse.record.run_record import RunRecord
from kifuse.reporting.comparison_tables import mean_cell
from kifuse.reporting.run_groups import Group
from kifuse.reporting.tables import Cell, Table
from kifuse.reporting.wording import clean, count, number

NAME, TITLE = "watched", "Tasks that are watched and never trained on"
_NOTE = "They are in no average of this page, and were in no training and no memory."


def watched_table(record: RunRecord) -> Table | None:
    """Make the table of a run's watched tasks: all scores, the change since the first; None without any."""
    if not record.watched or not record.watch_scores:
        return None
    names = [clean(entry.name) for entry in record.watched]
    table = Table(NAME, TITLE, ["after", *names])
    learned = [clean(task.name) for task in record.tasks]
    scores = {(s.after, s.task): s for s in record.watch_scores}
    for after in sorted({after for after, _ in scores}):
        task = f" {learned[after - 1]}" if 0 < after <= len(learned) else ""
        row = [scores.get((after, i)) for i in range(len(names))]
        moment = f"{after}{task}" if after else "before training"
        table.rows.append([Cell(moment), *map(_score_cell, row)])
    changes = [_change(record, i) for i in range(len(names))]
    table.total = [Cell("change"), *(Cell(number(each, sign=True), each) for each in changes)]
    table.notes.append(f"{_NOTE} The change is from the first score to the last.")
    table.notes += _of_lm_eval([record])
    if any(score.stderr is not None for score in record.watch_scores):
        table.spread = "standard error"
        table.notes.append("± is the standard error that lm_eval gives for a score.")
    return table


def watched_by_method(groups: Sequence[Group]) -> Table | None:
    """Make the table of first score, last score and change of watched tasks, by method; None without any."""
    table = Table(NAME, TITLE, ["watched task", "method", "first", "last", "change"])
    errors = any(score.stderr is not None for g in groups for r in g.runs for score in r.record.watch_scores)
    table.heads += ["standard error of a score"] * errors
    names = list(dict.fromkeys(w.name for g in groups for run in g.runs for w in run.record.watched))
    for name in names:
        for group in groups:
            means = [group.mean(lambda r, name=name, at=at: watched_score(r, name, at)) for at in (0, -1)]
            means.append(group.mean(lambda r, name=name: _changed(r, name)))
            if any(means):
                cells = [mean_cell(mean, sign=place == 2) for place, mean in enumerate(means)]
                if errors:
                    mean = group.mean(lambda r, name=name: _error(r, name))
                    cells.append(Cell(number(mean and mean.value), mean and mean.value))
                table.rows.append([Cell(clean(name)), Cell(group.label), *cells])
    table.notes.append(f"{_NOTE} Unfinished runs are left out.")
    table.notes += _of_lm_eval([run.record for group in groups for run in group.runs])
    return table if table.rows else None


def _score_cell(score: ScoreRecord | None) -> Cell:
    if score is None:
        return Cell(number(None))
    return Cell(number(score.score), score.score, None if score.stderr is None else number(score.stderr))


def _of_lm_eval(records: Sequence[RunRecord]) -> list[str]:
    """Say how the tasks of lm-evaluation-harness were run, each sentence once."""
    said = []
    for entry in (entry for record in records for entry in record.watched if entry.lm_eval is not None):
        of = entry.lm_eval
        if of is not None:
            measured = of.metric if of.filter == "none" else f"{of.metric} ({of.filter})"
            shown = "" if of.num_fewshot is None else f", {count(of.num_fewshot, 'example')} shown"
            most = "" if of.limit is None else f", at most {of.limit} a task"
            said.append(
                f"{clean(entry.name)}: {clean(measured)} of version {clean(of.version)} in lm_eval "
                f"{of.harness}, {count(entry.n, 'document')}{most}{shown}; no chat template."
            )
    return list(dict.fromkeys(said))


def _error(record: RunRecord, name: str) -> float | None:
    """Return the standard error of the last score of a watched task."""
    place = _place(record, name)
    found = [s.stderr for s in sorted(record.watch_scores, key=lambda s: s.after) if s.task == place]
    return found[-1] if found else None


def watched_names(record: RunRecord) -> list[str]:
    """List the watched tasks of a run."""
    return [entry.name for entry in record.watched]


def watched_score(record: RunRecord, name: str, at: int) -> float | None:
    """Find a watched task's score, the first (0) or the last (-1) in time; None if there is none."""
    place = _place(record, name)
    found = [] if place is None else _scores(record, place)
    return found[at] if found else None


def _scores(record: RunRecord, index: int) -> list[float]:
    return [s.score for s in sorted(record.watch_scores, key=lambda s: s.after) if s.task == index]


def _change(record: RunRecord, index: int) -> float | None:
    found = _scores(record, index)
    return found[-1] - found[0] if len(found) > 1 else None


def _place(record: RunRecord, name: str) -> int | None:
    return next((i for i, entry in enumerate(record.watched) if entry.name == name), None)


def _changed(record: RunRecord, name: str) -> float | None:
    place = _place(record, name)
    return None if place is None else _change(record, place)
