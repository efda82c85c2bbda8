"""A learner's watched tasks: scored after each task that it learns, and never trained on."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from kifuse.errors import DataError, RunError
from kifuse.io.file_names import name_key
from kifuse.learning.open_learner import OpenLearner
from kifuse.learning.settings import lm_eval_config
from kifuse.record.parts import LmEvalRecord, WatchedRecord
from kifuse.running.lm_eval_tasks import LmEvalTask, open_lm_eval, recorded_config
from kifuse.running.progress import Plan
from kifuse.running.watched_tasks import (
    Watched,
    answers_of,
    other_harness,
    put_on_watch,
    refuse_learned,
    score_watched,
    tell_trained,
    unscored,
)
from kifuse.tasks.learned_task import keep_task
from kifuse.tasks.task import Task
from kifuse.tasks.watched import watched_tasks


def put_under_watch(
    opened: OpenLearner, given: Iterable[Any], lm_eval: Any = (), learns: str | None = None
) -> dict[str, float]:
    """Watch more tasks from now on, as `ContinualLearner.watch` says.

    Args:
        opened: The learner.
        given: The tasks, as `watched_tasks` takes them.
        lm_eval: Tasks of lm-evaluation-harness, as `ContinualLearner.watch` takes them.
        learns: Name of the task that is learned next; no task of this name can be watched.

    Raises:
        DataError: The data is wrong, or a learned task has the same name.
        RunError: A task of the same name is watched with other examples.
        ConfigError: lm_eval is not installed, or does not have a task.
    """
    record, place, engine = opened.record, opened.place, opened.engine
    data, seed = engine.config.data, engine.config.training.seed
    tasks: list[Watched] = [t for each in given for t in watched_tasks(each, data.test_examples, seed)]
    of_lm_eval = open_lm_eval(lm_eval_config(lm_eval))
    tasks += of_lm_eval
    if learns is not None:
        refuse_watched(opened, learns)
        refuse_learned([learns], tasks)
    with opened.alone():
        engine.settle(opened.learned)
        new = put_on_watch(record, tasks)
        opened.lm_eval.update({task.name: task for task in of_lm_eval})
        for task in (task for task in new if isinstance(task, Task)):
            index = next(i for i, entry in enumerate(record.watched) if entry.name == task.name)
            kept = partial(keep_task, place.kept_watched(index), task)
            record.watched[index].kept = engine.processes.of_first(kept)
        engine.save()
        answers = answers_to_watch(opened)
        if answers:
            engine.progress.begin("watched tasks", Plan(0, answers), Plan(0, 0))
        score_watched_now(opened)
        engine.tell_saved()
    scores = record.watch_row(opened.learned)
    return {task.name: scores[task.name] for task in tasks}


def watched_in(opened: OpenLearner) -> list[Watched]:
    """Read the watched tasks with their kept examples, in the order of the record.

    Raises:
        RunError: The examples are not what was written; or the user's own task files must be named again.
        ConfigError: lm_eval is not installed any more, or does not have a task.
    """
    places = [i for i, entry in enumerate(opened.record.watched) if entry.forgotten is None]
    return [watched_at(opened, i) for i in places]


def watched_at(opened: OpenLearner, index: int) -> Watched:
    """The watched task at an index from 0; see `watched_in`."""
    entry = opened.record.watched[index]
    if entry.lm_eval is None:
        return opened.place.watched(index, opened.record)
    if entry.name not in opened.lm_eval:
        opened.lm_eval[entry.name] = _loaded_again(opened, entry, entry.lm_eval)
    return opened.lm_eval[entry.name]


def _loaded_again(opened: OpenLearner, entry: WatchedRecord, of: LmEvalRecord) -> LmEvalTask:
    """Load a task of lm-evaluation-harness as it is on record; only the caller may name code to run.

    Raises:
        RunError: It comes from task files, which may hold code; or its documents are not those of the record.
    """
    if of.include_path:
        raise RunError(
            f"{opened.place.path}: {entry.name!r} is watched by task files in {', '.join(of.include_path)}, "
            "whose code may run, so each process must name them again: learner.watch(lm_eval={"
            f"'tasks': [{of.task!r}], 'include_path': ...}}), or kifuse learn --watch-lm-eval. To stop "
            f"watching it: kifuse forget {opened.place.path} {entry.name}"
        )
    [task] = open_lm_eval(recorded_config(of))
    if task.hash != entry.hash:
        raise RunError(
            f"{opened.place.path}: {entry.name!r} was watched with other documents, or another version of "
            f"the task, with lm_eval {of.harness}. Put that back, or stop watching it: kifuse forget "
            f"{opened.place.path} {entry.name}"
        )
    said = other_harness(entry, task)
    if said is not None and said not in opened.record.warnings:
        opened.record.warnings.append(said)
        opened.engine.progress.say(f"note: {said}")
    return task


def answers_to_watch(opened: OpenLearner) -> int:
    """Count the answers to watched tasks that are still to be scored in the learner's current state."""
    return sum(answers_of(task) for _, task in unscored(opened.record, opened.learned, watched_in(opened)))


def refuse_watched(opened: OpenLearner, name: str) -> None:
    """Refuse to learn a task that has the name of a watched one.

    Raises:
        DataError: A watched task has this name.
    """
    watched = {name_key(entry.name): entry.name for entry in opened.record.watched if not entry.forgotten}
    there = watched.get(name_key(name))
    if there is not None:
        raise DataError(
            f"{opened.place.path}: cannot learn {name!r}, as a task of this name is watched and never "
            "trained on. Give the new task another name (--name), or stop watching the other: kifuse "
            f"forget {opened.place.path} {there}"
        )


def score_watched_now(opened: OpenLearner) -> None:
    """Score the watched tasks in the learner's current state, unless that was done.

    Raises:
        RunError: Their examples are not what was written.
    """
    if opened.record.watched:
        score_watched(opened.engine, opened.learned, watched_in(opened))


def tell_shared(opened: OpenLearner, task: Task) -> None:
    """Say which watched inputs a task trains on."""
    tell_trained(opened.record, watched_in(opened), [task], opened.engine.progress.say)
