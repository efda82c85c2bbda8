"""Whatever a user has at hand for a new task, as a `Task`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Set
from dataclasses import replace
from typing import Any

from kifuse.errors import DataError
from kifuse.tasks.readers import read_task, repeated_ids
from kifuse.tasks.readers.jsonl import task_from_rows
from kifuse.tasks.sampling import visiting_order
from kifuse.tasks.task import SPLITS, Metric, Task

HELD_OUT = 0.1
"""Share of the training examples that become the test set of a task that brings none."""

MOST_HELD_OUT = 200
"""More test examples than these cost time at every later task and say little more."""

_ALIASES = {"validation": "dev", "valid": "dev", "val": "dev", "eval": "dev"}


def as_task(
    data: Any,
    *,
    name: str | None = None,
    test: Any = None,
    instruction: str | None = None,
    labels: Iterable[str] | None = None,
    list_labels: bool = False,
    metric: Metric | None = None,
    seed: int = 0,
    to_learn: bool = True,
) -> Task:
    """Make a task of a `Task`, a path, a `datasets.Dataset` or `DatasetDict`, or a list of rows.

    Args:
        data: A path is read as `read_task` does. Rows have `input` and `output`, `prompt` and `completion`,
            or `messages`; a mapping gives them for each split.
        name: The task's name; needed where the data brings none.
        test: Test rows for data that is one list of rows.
        instruction: For rows; see `task_from_rows`.
        labels: For rows.
        list_labels: For rows.
        metric: For rows.
        seed: Of the draw of the test set, where there is none: a tenth of the training examples, 200 at most.
        to_learn: Whether it must have training examples; without, it is taken as it is.

    Returns:
        A task with training and, if there are at least two training examples, test examples.

    Raises:
        DataError: The data is of no known kind, has no name, or a row is wrong; or an option is given with a
            task or path, which say it themselves.
    """
    options = {"instruction": instruction, "list_labels": list_labels, "metric": metric}
    if isinstance(data, (Task, str, os.PathLike)):
        _refuse_options({"test": test, "labels": labels, **options})
    if isinstance(data, Task):
        task = data if name is None else replace(data, name=name)
    elif isinstance(data, (str, os.PathLike)):
        task = read_task(data)
        task = task if name is None else replace(task, name=name)
    else:
        if name is None:
            raise DataError(
                "learn(): rows have no name of their own; say name='...', which the record will show."
            )
        splits = _splits(data, test)
        task = task_from_rows(name, splits, labels=_ordered(labels), **options)
        task = replace(task, warnings=(*task.warnings, *repeated_ids(task)))
    if not to_learn:
        return task
    if not task.train:
        raise DataError(f"Task '{task.name}': it has no training examples, so there is nothing to learn.")
    return task if task.test else _hold_out(task, seed)


def _ordered(labels: Iterable[str] | None) -> list[str] | None:
    """Labels in their order, and those of a set sorted: a set's own order changes from process to process."""
    if isinstance(labels, Set):
        return sorted(labels)
    return None if labels is None else list(labels)


def _refuse_options(options: Mapping[str, Any]) -> None:
    given = [name for name, value in options.items() if value is not None and value is not False]
    if given:
        raise DataError(
            f"learn(): found {', '.join(given)} with a task or path, expected them with rows only; a task's "
            "folder holds test.jsonl and task.json, and a Task has fields for them."
        )


def _splits(data: Any, test: Any) -> dict[str, list[Any]]:
    if isinstance(data, Mapping):
        found: dict[str, list[Any]] = {}
        for key, rows in data.items():
            split = _ALIASES.get(str(key), str(key))
            if split not in SPLITS:
                raise DataError(
                    f"learn(): found a split {key!r}, expected {', '.join(SPLITS)} or validation."
                )
            found[split] = list(rows)
    elif isinstance(data, Iterable):
        found = {"train": list(data)}
    else:
        raise DataError(
            f"learn(): found {type(data).__name__}, expected a Task, a path, a datasets.Dataset or a list of "
            "rows."
        )
    if test is not None:
        found["test"] = list(test)
    return found


def _hold_out(task: Task, seed: int) -> Task:
    """Set a part of the training examples aside; the same part each time."""
    count = min(MOST_HELD_OUT, int(len(task.train) * HELD_OUT) or (1 if len(task.train) > 1 else 0))
    chosen = set(visiting_order(task.train, task.labels, (seed, task.name, "held out"))[:count])
    said = f"Task '{task.name}': {count} training examples were set aside as its test set."
    return replace(
        task,
        train=tuple(e for i, e in enumerate(task.train) if i not in chosen),
        test=tuple(e for i, e in enumerate(task.train) if i in chosen),
        warnings=(*task.warnings, said),
    )
