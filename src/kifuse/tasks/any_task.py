"""Makes a `Task` from whatever data a user has for a new task."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kifuse.errors import ConfigError, DataError, did_you_mean
from kifuse.tasks.holding_out import hold_out
from kifuse.tasks.readers import repeated_ids, task_with
from kifuse.tasks.readers.building import build
from kifuse.tasks.readers.names import data_file
from kifuse.tasks.readers.objects import object_tables
from kifuse.tasks.readers.own import file_tables
from kifuse.tasks.readers.settings import Settings, settings_of_rows
from kifuse.tasks.readers.tables import Table
from kifuse.tasks.task import Metric, Task


def as_task(
    data: Any,
    *,
    name: str | None = None,
    test: Any = None,
    instruction: str | None = None,
    labels: Iterable[str] | None = None,
    list_labels: bool = False,
    metric: Metric | Callable[..., Any] | None = None,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    seed: int = 0,
    to_learn: bool = True,
) -> Task:
    """Make a task from a `Task`, a path, a data set of the hub, or rows in memory.

    Args:
        data: A path, or a hub id such as ``owner/name``, is read as by `read_task`. Rows are a
            `datasets.Dataset`, an `IterableDataset`, a data frame, a list or other iterable of mappings; a
            `DatasetDict` or mapping gives the rows of each split. The guide lists the formats of rows.
        name: The task's name; required if the data has none.
        test: Test rows, for data that is one list of rows or one file.
        instruction: Text before each input that has no instruction of its own.
        labels: The closed set of outputs; a set is sorted.
        list_labels: Whether the prompt lists the labels.
        metric: How predictions are scored: a name of `METRICS`, ``"module:function"``, or a function; None:
            exact match with labels, perplexity of texts to continue, else ROUGE-L.
        format: The format of the rows; with None it is recognised for each row from the row's fields.
        columns: Names of the data's own columns by their contents: ``{"input": "question"}``.
        seed: Seed for drawing the test set if the data has none: a tenth of the training examples, 200 at
            most.
        to_learn: Whether the task must have training examples; if not, the data is used as it is.

    Returns:
        A task with training and, if there are at least two training examples, test examples.

    Raises:
        DataError: The kind of the data is not known, the data has no name, or a row is wrong; or an option is
            given together with a `Task`, which has its own, or is given twice.
    """
    options = {
        "instruction": instruction,
        "labels": labels,
        "list_labels": list_labels,
        "metric": metric,
        "format": format,
        "columns": columns,
    }
    if isinstance(data, Task):
        _refuse_options({"test": test, **options})
        task = data if name is None else replace(data, name=name)
    else:
        task = _task(data, test, name, settings_of_rows(name or "learn()", **options))
    if not to_learn:
        return task
    if not task.train:
        raise DataError(f"Task '{task.name}': it has no training examples, so there is nothing to learn.")
    return task if task.test else hold_out(task, "test", seed)


_OPTIONS = ("name", "test", "instruction", "labels", "list_labels", "metric", "format", "columns")


def known_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a user gave for a task's data, once their names are checked.

    Raises:
        ConfigError: An option is not one of `as_task`'s; the message names the most similar one.
    """
    for option in options:
        if option not in _OPTIONS:
            raise ConfigError(
                f"learn(): found the option {option!r}, expected some of {', '.join(_OPTIONS)}."
                f"{did_you_mean(option, _OPTIONS)}"
            )
    return dict(options)


def to_score(data: Any) -> Task:
    """Make a task from data that is only scored: a file without splits becomes the test split.

    Args:
        data: As in `as_task`.

    Raises:
        DataError: For the reasons given in `as_task`.
    """
    task = as_task(data, to_learn=False)
    whole = isinstance(data, (str, os.PathLike)) and Path(data).is_file() and not (task.test or task.dev)
    return replace(task, train=(), test=task.train) if whole else task


def _task(data: Any, test: Any, name: str | None, settings: Settings) -> Task:
    """Read a path, a data set of the hub, or rows, with separate test rows if there are any."""
    said: list[str] = []
    if isinstance(data, (str, os.PathLike)):
        if test is None:
            task = task_with(data, settings)
            return task if name is None else replace(task, name=name)
        file = data_file(Path(data))
        if file is None:
            raise DataError(
                f"learn(): found test= with the folder {os.fspath(data)}, expected it only with rows or one "
                "data file. Put the test rows into test.jsonl in that folder."
            )
        name, (splits, said) = name or file.stem, file_tables(file)
    elif name is None:
        raise DataError("learn(): found rows without a name. Give name='...', which the record shows.")
    else:
        splits, said = object_tables(data, name)
    if test is not None:
        if "test" in splits:
            raise DataError(f"learn(): task '{name}' has its own test rows. Leave out test=.")
        splits = {**splits, "test": _test_table(test, name)}
    task = build(name, splits, settings, said)
    return replace(task, warnings=(*task.warnings, *repeated_ids(task)))


def _test_table(test: Any, name: str) -> Table:
    file = data_file(Path(test)) if isinstance(test, (str, os.PathLike)) else None
    splits, _ = object_tables(test, name) if file is None else file_tables(file)
    if len(splits) > 1:
        raise DataError(f"learn(): test= holds several splits, {', '.join(splits)}; give one of them.")
    rows = next(iter(splits.values()))
    old, new = f"{name}, train row", f"{name}, test row"
    return replace(rows, rows=[replace(row, where=row.where.replace(old, new)) for row in rows.rows])


def _refuse_options(options: Mapping[str, Any]) -> None:
    given = [name for name, value in options.items() if value is not None and value is not False]
    if given:
        raise DataError(
            f"learn(): found {', '.join(given)} with a Task, expected them with rows or a path only. Set "
            "the fields of the Task: dataclasses.replace(task, ...)."
        )
