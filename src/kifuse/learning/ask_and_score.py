"""How a learner is asked and scored: as it is now, or as it was after an earlier task."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from kifuse.errors import DataError, did_you_mean
from kifuse.learning.open_learner import OpenLearner
from kifuse.learning.watched_tasks import watched_at
from kifuse.record.lineage import count_up_to
from kifuse.running.watched_tasks import Watched, answers_of, score_now
from kifuse.tasks.any_task import to_score


@contextlib.contextmanager
def as_of(opened: OpenLearner, after: int | str | None) -> Iterator[int]:
    """Set the model back to a number of tasks while the block runs; yields that number.

    Args:
        opened: The learner.
        after: Number of tasks, or the name of the last one; None for the model as it is now.

    Raises:
        RunError: No such task was learned, or the state after it is damaged.
    """
    learned, engine = opened.learned, opened.engine
    engine.settle(learned)
    k = learned if after is None else count_up_to(after, opened.tasks, "after")
    try:
        if k != learned:
            engine.restore(k)
        yield k
    finally:
        if k != learned:
            engine.cut_short()
            engine.settle(learned)


def scores_of(opened: OpenLearner, tasks: Iterable[Any] | None, after: int | str | None) -> dict[str, float]:
    """Score tasks, as `ContinualLearner.evaluate` says.

    Raises:
        DataError: A name is not of a learned task, or a task has no test examples.
        RunError: No such task was learned, or the state after it is damaged.
    """
    scores = {}
    tested = [task.name for task in opened.record.tasks[: opened.learned] if task.sizes["test"]]
    with as_of(opened, after) as k:
        for each in tested if tasks is None else [tasks] if isinstance(tasks, str) else tasks:
            task = _named(opened, each)
            if not answers_of(task):
                raise DataError(f"Task {task.name!r}: it has no test examples to score.")
            evaluator, say = opened.engine.evaluator, opened.engine.progress.say
            scores[task.name] = score_now(evaluator, task, k, None, say, keep=False).score
    return scores


def _named(opened: OpenLearner, each: Any) -> Watched:
    """Find a learned or watched task by its name, or read another one that is to be scored."""
    tasks = opened.tasks
    if isinstance(each, str) and each in tasks:
        return opened.place.tested(tasks.index(each), opened.record)
    watched = {entry.name: i for i, entry in enumerate(opened.record.watched) if entry.forgotten is None}
    if isinstance(each, str) and each in watched:
        return watched_at(opened, watched[each])
    if isinstance(each, str) and not Path(each).exists():
        known = [*tasks, *watched]
        raise DataError(
            f"evaluate(): no task {each!r} was learned or is watched, and there is no such path; known are "
            f"{', '.join(known) or 'none yet'}.{did_you_mean(each, known)}"
        )
    return to_score(each)
