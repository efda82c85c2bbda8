"""Tasks that are scored beside the stream and never trained on: on record, and scored at their moments."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kifuse.config import RunConfig
from kifuse.errors import RunError
from kifuse.reporting.record import RunRecord, ScoreRecord, WatchedRecord
from kifuse.tasks.task import Task, check_different
from kifuse.tasks.watched import also_trained, watched_tasks
from kifuse.training.engine import Engine


def open_watched(config: RunConfig) -> list[Task]:
    """Read the tasks that a run's configuration names under `watch`; none while settings are chosen on dev.

    Raises:
        DataError: The data is wrong, or two tasks have one name.
    """
    if config.data.scored_on == "dev":
        return []
    most, seed = config.data.test_examples, config.training.seed
    tasks = [task for path in config.watch.tasks for task in watched_tasks(path, most, seed)]
    check_different([task.name for task in tasks], "watch")
    return tasks


def put_on_watch(record: RunRecord, tasks: Sequence[Task]) -> list[Task]:
    """Put watched tasks on record that are not there yet.

    Args:
        record: Of the run; changed in place, not saved.
        tasks: To be watched.

    Returns:
        Those that are new.

    Raises:
        RunError: A task of the name is watched with other examples.
        DataError: It has the name of a task of the stream.
    """
    check_different([*(entry.name for entry in record.tasks), *(t.name for t in tasks)], "watch: the run")
    known, new = {entry.name: entry for entry in record.watched}, []
    for task in tasks:
        there = known.get(task.name)
        if there is None:
            record.watched.append(_entry(task))
            new.append(task)
        elif (there.hash, there.metric) != (task.split_hash("test"), task.metric):
            raise RunError(
                f"watch: task {task.name!r} was watched with other examples or another metric before; put "
                "them back, or give this one another name."
            )
    return new


def tell_trained(
    record: RunRecord, watched: Sequence[Task], tasks: Sequence[Task], say: Callable[[str], None]
) -> None:
    """Say, and put on record, which watched inputs are trained on in tasks of the stream."""
    for each in watched:
        for said in filter(None, (also_trained(each, task) for task in tasks)):
            if said not in record.warnings:
                record.warnings.append(said)
                say(f"note: {said}")


def _entry(task: Task) -> WatchedRecord:
    return WatchedRecord(
        name=task.name,
        metric=task.metric,
        labels=list(task.labels) if task.labels else None,
        n=len(task.test),
        hash=task.split_hash("test"),
        metric_source=task.metric_source,
    )


def score_watched(engine: Engine, after: int, tasks: Sequence[Task]) -> None:
    """Score watched tasks, in the order of the record, after some tasks were learned.

    The model is told no task, no answer is kept, and a score that is on record is not made again.
    """
    record = engine.record
    done = {(score.after, score.task) for score in record.watch_scores}
    said = []
    for i, task in enumerate(tasks):
        if (after, i) in done:
            continue
        cell = engine.evaluator.score(task, after, keep=False)
        first = next((s.score for s in record.watch_scores if s.task == i), None)
        record.watch_scores.append(
            ScoreRecord(
                after=after, task=i, score=cell.score, valid=cell.valid, n=cell.n, seconds=cell.seconds
            )
        )
        said.append(
            f"{task.name} {cell.score:.1f}" + ("" if first is None else f" ({cell.score - first:+.1f})")
        )
    if said:
        engine.save()
        moment = f"after task {after}" if after else "before any task"
        engine.progress.say(f"watched {moment}: {', '.join(said)}")
