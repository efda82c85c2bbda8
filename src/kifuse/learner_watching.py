"""A learner's watched tasks: scored after each task that it learns, and never trained on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kifuse.learner_opening import OpenLearner
from kifuse.storage import sha256_file
from kifuse.tasks.kept import keep_task
from kifuse.tasks.task import Task
from kifuse.tasks.watched import watched_tasks
from kifuse.training.watched import put_on_watch, score_watched, tell_trained


def watch(opened: OpenLearner, given: Iterable[Any]) -> dict[str, float]:
    """Watch more tasks from now on, as `ContinualLearner.watch` says.

    Raises:
        DataError: The data is wrong, or a learned task has the name.
        RunError: A task of the name is watched with other examples.
    """
    record, place, engine = opened.record, opened.place, opened.engine
    data, seed = engine.config.data, engine.config.training.seed
    tasks = [task for each in given for task in watched_tasks(each, data.test_examples, seed)]
    with opened.alone():
        engine.settle(opened.learned)
        for task in put_on_watch(record, tasks):
            index = next(i for i, entry in enumerate(record.watched) if entry.name == task.name)
            keep_task(place.kept_watched(index), task)
            record.watched[index].kept = sha256_file(place.kept_watched(index))
        engine.save()
        score_watched_now(opened)
        engine.tell_saved()
    scores = record.watch_row(opened.learned)
    return {task.name: scores[task.name] for task in tasks}


def watched_in(opened: OpenLearner) -> list[Task]:
    """The watched tasks, with the examples that were kept of them, in the order of the record.

    Raises:
        RunError: They are not as they were written.
    """
    return [opened.place.watched(i, opened.record) for i in range(len(opened.record.watched))]


def score_watched_now(opened: OpenLearner) -> None:
    """Score the watched tasks as the learner is now, unless they are scored.

    Raises:
        RunError: Their examples are not as they were written.
    """
    if opened.record.watched:
        score_watched(opened.engine, opened.learned, watched_in(opened))


def tell_shared(opened: OpenLearner, task: Task) -> None:
    """Say which watched inputs a task trains on."""
    tell_trained(opened.record, watched_in(opened), [task], opened.engine.progress.say)
