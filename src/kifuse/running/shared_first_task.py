"""Takes the first task of a run from another run, if both must give the same result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kifuse.config import RunConfig
from kifuse.errors import KifuseError
from kifuse.methods.base import Method
from kifuse.record.run_record import RunRecord, ScoreRecord, TaskRecord
from kifuse.registry import build_method
from kifuse.running.run_start import RENDERING, WITHOUT_EFFECT, begun_form, config_json, differences
from kifuse.running.snapshot import Snapshots

WITHOUT_WEIGHT = (*WITHOUT_EFFECT, RENDERING, "method.", "data.order ")
"""Beginnings of those differences between two configurations that leave the first task the same."""


def trains_plainly(method: Method) -> bool:
    """Whether a method trains its first task like any other method, and keeps nothing but the weights."""
    return method.plain_first_task and method.old_data != "all" and not isinstance(method.adapter, type)


def may_share_first_task(method: Method, config: RunConfig) -> bool:
    """Whether another run's first task may be a run's own, which it is where data and settings are."""
    memory = config.memory
    plainly = trains_plainly(method) and memory.source == "real" and not memory.generic_share
    return plainly and config.model.adapter.from_ is None


def same_first_task(
    others: Sequence[Path], config: RunConfig, record: RunRecord
) -> tuple[Path, RunRecord] | None:
    """Find a run whose first task was trained plainly, on the same data, with all the same settings.

    Args:
        others: Folders that hold runs, or may hold them later.
        config: Configuration of the run that has not trained anything yet.
        record: Record of that run; its method trains the first task plainly.

    Returns:
        The first such run whose adapter after one task is whole, with its record, or None.
    """
    for other in others:
        try:
            theirs = RunRecord.load(other)
            if not _agrees(theirs, config, record):
                continue
            Snapshots(other).check(1, theirs.tasks[0].seal)
        except KifuseError:  # not there yet, or damaged: then the task is trained
            continue
        return other, theirs
    return None


def _agrees(theirs: RunRecord, config: RunConfig, record: RunRecord) -> bool:
    if (
        not theirs.tasks
        or theirs.tasks[0].train_steps is None
        or not same_task(theirs.tasks[0], record.tasks[0])
    ):
        return False
    if [(w.name, w.hash) for w in theirs.watched] != [(w.name, w.hash) for w in record.watched]:
        return False
    if begun_form(theirs) != begun_form(record):
        return False
    differing = differences(theirs.config, config_json(config))
    if any(not each.startswith(WITHOUT_WEIGHT) for each in differing):
        return False
    settings = {key: value for key, value in theirs.config["method"].items() if key != "name"}
    return trains_plainly(build_method(theirs.method.name, settings))


def same_task(a: TaskRecord, b: TaskRecord) -> bool:
    """Whether two tasks have the same name, examples, labels and metric."""
    return _identity(a) == _identity(b)


def _identity(task: TaskRecord) -> tuple[Any, ...]:
    return task.name, task.hashes, task.labels, task.metric, task.metric_source


def early_scores(theirs: RunRecord, record: RunRecord, cells: Sequence[tuple[int, int]]) -> list[ScoreRecord]:
    """Another run's scores before and after the first task, for the cells that this run needs.

    Args:
        theirs: The other run; its later tasks may have another order, or be other tasks.
        record: Record of this run.
        cells: Cells (after, task) that this run needs.
    """
    known = {(score.after, score.task): score for score in theirs.scores if score.after <= 1}
    found = []
    for after, i in cells:
        places = [j for j, task in enumerate(theirs.tasks) if same_task(task, record.tasks[i])]
        score = known.get((after, places[0])) if places else None
        if score is not None:
            found.append(score.model_copy(update={"task": i}))
    return found
