"""Watched tasks, which are scored beside the stream and never trained on: their record and their scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from kifuse.answering.evaluator import Cell, Evaluator
from kifuse.config import RunConfig
from kifuse.errors import DataError, RunError
from kifuse.io.file_names import name_key
from kifuse.record.run_record import RunRecord, WatchedRecord
from kifuse.running.engine import Engine
from kifuse.running.lm_eval_tasks import LmEvalTask, open_lm_eval
from kifuse.tasks.task import Task, check_different
from kifuse.tasks.watched import also_trained, watched_tasks

Watched = Task | LmEvalTask
"""What can be watched: a task with examples, or one of lm-evaluation-harness."""


def open_watched(config: RunConfig) -> list[Watched]:
    """Read the tasks that a configuration names under `watch`; none while settings are chosen on dev.

    Raises:
        DataError: The data is wrong, or two tasks have one name.
        ConfigError: lm_eval is not installed, or does not have a task.
    """
    if config.data.scored_on == "dev":
        return []
    most, seed = config.data.test_examples, config.training.seed
    tasks: list[Watched] = [t for path in config.watch.tasks for t in watched_tasks(path, most, seed)]
    tasks += open_lm_eval(config.watch.lm_eval)
    check_different([task.name for task in tasks], "watch")
    return tasks


def put_on_watch(record: RunRecord, tasks: Sequence[Watched]) -> list[Watched]:
    """Put those watched tasks on record that are not there yet.

    Args:
        record: The run's record; it is changed in place, and not saved.
        tasks: The tasks to watch.

    Returns:
        The tasks that are new.

    Raises:
        RunError: A task of the same name is watched with other examples.
        DataError: A task has the name of a task of the stream.
    """
    refuse_learned([entry.name for entry in record.tasks], tasks)
    names = list(dict.fromkeys([*(entry.name for entry in record.watched), *(task.name for task in tasks)]))
    check_different(names, "watch")
    new = []
    for task in tasks:
        place = names.index(task.name)
        there = record.watched[place] if place < len(record.watched) else None
        if there is None or there.forgotten:
            record.watched[place : place + 1] = [_entry(task)]
            record.watch_scores = [score for score in record.watch_scores if score.task != place]
            new.append(task)
            if isinstance(task, LmEvalTask):
                record.versions["lm_eval"] = task.of.harness
        elif (there.hash, there.metric) != ((entry := _entry(task)).hash, entry.metric):
            raise RunError(
                f"watch: task {task.name!r} was watched with other examples or another metric before. Put "
                "them back, or give this task another name."
            )
        elif isinstance(task, LmEvalTask) and (said := other_harness(there, task)) is not None:
            record.warnings += [said] if said not in record.warnings else []
    return new


def other_harness(there: WatchedRecord, task: LmEvalTask) -> str | None:
    """Say that another lm_eval scored a watched task before; None if it was this one."""
    before = there.lm_eval.harness if there.lm_eval else ""
    if before == task.of.harness:
        return None
    return (
        f"Watched task '{task.name}': lm_eval {before} scored it before and {task.of.harness} scores it "
        "from now on, so the scores may not be comparable."
    )


def refuse_learned(learned: Sequence[str], tasks: Sequence[Watched]) -> None:
    """Refuse to watch a task that has the name of a learned one.

    Raises:
        DataError: There is such a task.
    """
    names = {name_key(name): name for name in learned}
    for task in tasks:
        if name_key(task.name) in names:
            raise DataError(
                f"watch: found {task.name!r}, which is the name of a task that is learned "
                f"({names[name_key(task.name)]!r}) and so is scored. Leave it out or, if these are other "
                "examples, rename the watched file or folder."
            )


def unscored(record: RunRecord, after: int, tasks: Sequence[Watched]) -> list[tuple[int, Watched]]:
    """The watched tasks without a score after some tasks of the stream, with their place on record."""
    places = {entry.name: i for i, entry in enumerate(record.watched)}
    done = {score.task for score in record.watch_scores if score.after == after}
    return [(places[task.name], task) for task in tasks if places[task.name] not in done]


def tell_trained(
    record: RunRecord, watched: Sequence[Watched], tasks: Sequence[Task], say: Callable[[str], None]
) -> None:
    """Say, and put on record, which watched inputs are trained on in tasks of the stream.

    Documents of lm_eval's tasks are not compared, because lm_eval builds its inputs in other ways.
    """
    for each in (task for task in watched if isinstance(task, Task)):
        for said in filter(None, (also_trained(each, task) for task in tasks)):
            if said not in record.warnings:
                record.warnings.append(said)
                say(f"note: {said}")


def answers_of(task: Watched) -> int:
    """How many answers it takes to score a watched task."""
    return task.n if isinstance(task, LmEvalTask) else len(task.test)


def _entry(task: Watched) -> WatchedRecord:
    if isinstance(task, LmEvalTask):
        return task.entry()
    return WatchedRecord(
        name=task.name,
        metric=task.metric,
        labels=list(task.labels) if task.labels else None,
        n=len(task.test),
        hash=task.split_hash("test"),
        metric_source=task.metric_source,
    )


def score_now(
    evaluator: Evaluator,
    task: Watched,
    after: int,
    progress: Callable[[int, int], None] | None,
    say: Callable[[str], None],
    *,
    keep: bool = True,
) -> Cell:
    """Score a task with the model as it is now; `keep` writes the answers.

    Raises:
        RunError: lm_eval fails on the model.
    """
    if not isinstance(task, LmEvalTask):
        return evaluator.score(task, after, progress, keep=keep)
    from kifuse.running.lm_eval_model import score_lm_eval  # imports lm_eval

    return score_lm_eval(task, evaluator, after, progress or (lambda done, total: None), say, keep=keep)


def score_watched(engine: Engine, after: int, tasks: Sequence[Watched]) -> None:
    """Score watched tasks after some tasks were learned, and keep the answers beside those of the stream.

    The model is not told the task, and a score that is on record is not measured again.
    """
    record = engine.record
    said = []
    for i, task in unscored(record, after, tasks):
        progress = partial(engine.progress.scoring, task.name)
        cell = score_now(engine.evaluator, task, after, progress, engine.progress.say)
        last = max((s for s in record.watch_scores if s.task == i), key=lambda s: s.after, default=None)
        record.watch_scores.append(cell.on_record(after, i))
        sure = "" if cell.stderr is None else f" ± {cell.stderr:.1f}"
        changed = "" if last is None else f" ({cell.score - last.score:+.1f})"
        said.append(f"{task.name} {cell.score:.1f}{sure}{changed}")
    if said:
        engine.save()
        moment = f"after task {after}" if after else "before any task"
        engine.progress.say(f"watched {moment}: {', '.join(said)}")
