"""Tasks that are scored and never trained on."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from kifuse.errors import DataError
from kifuse.tasks.any_task import as_task
from kifuse.tasks.readers import read_stream
from kifuse.tasks.task import Task


def watched_tasks(data: Any, most: int | None = None, seed: int = 0) -> list[Task]:
    """Read tasks from a path, or make one from a `Task` or rows, with nothing but their test examples.

    Args:
        data: A task's folder or file, a folder of several tasks, or anything that `as_task` takes. A file
            without splits is scored as a whole.
        most: Test examples to keep of each task; None keeps all.
        seed: Seed for drawing them.

    Raises:
        DataError: The data is wrong, or a task has no test examples.
    """
    path = isinstance(data, (str, os.PathLike))
    found = list(read_stream(data).tasks) if path else [as_task(data, to_learn=False)]
    tasks = []
    for task in found:
        whole = path and Path(data).is_file() and not (task.test or task.dev)
        test = task.train if whole else task.test
        if not test:
            raise DataError(
                f"watch: task {task.name!r} has no test examples, expected some, as it is scored and never "
                "trained on. Add a test file."
            )
        # subset() refuses to keep no training example, so it is called before they are removed
        tasks.append(replace(replace(task, test=test).subset(test=most, seed=seed), train=(), dev=()))
    return tasks


def also_trained(watched: Task, task: Task) -> str | None:
    """Say that a watched task's inputs are trained on in another task; None if none is."""
    trained = {example.input_hash() for example in task.train}
    shared = sum(example.input_hash() in trained for example in watched.test)
    if not shared:
        return None
    return (
        f"Watched task '{watched.name}': {shared} of its {len(watched.test)} inputs are training inputs of "
        f"'{task.name}', so its scores say less about data that was never trained on."
    )
