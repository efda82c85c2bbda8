"""The part of a learned task that is needed later: its test examples and its prompt format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kifuse.errors import DataError, KifuseError
from kifuse.io.storage import read_json, sha256_file, write_json
from kifuse.scoring.metrics import metric_name
from kifuse.scoring.own_function import refuse_unnamed
from kifuse.tasks.on_disk import joined
from kifuse.tasks.overlaps import Inputs
from kifuse.tasks.questions import Way, way_of
from kifuse.tasks.task import Example, Task

FORMAT = 1


def keep_task(file: Path, task: Task, probe: Sequence[Example] = ()) -> str:
    """Write what scoring needs of a task: test examples, labels and metric, but no training examples.

    A probe is the exception: a few examples that show later whether the model still knows the task. Hashes of
    all inputs are kept as well, so that the inputs of later tasks can be compared with them.

    Returns:
        SHA-256 of the file.

    Raises:
        KifuseError: The file cannot be written.
    """
    test = [example.state() for example in task.test]
    labels = None if task.labels is None else list(task.labels)
    more = {"probe": [example.state() for example in probe]} if probe else {}
    write_json(
        file,
        {"format": FORMAT, "name": task.name, "metric": task.metric, "labels": labels, "source": task.source}
        | {"test": test, "inputs": task.input_hashes(), "asks": way_of(joined(task.train, task.test))}
        | more,
    )
    return sha256_file(file)


def kept_probe(file: Path) -> list[Example]:
    """Read the examples that were kept as a task's probe; empty if none were kept.

    Raises:
        DataError: The file is damaged.
    """
    found = read_json(file)
    try:
        return [Example.from_state(item) for item in found.get("probe", ())]
    except (KeyError, TypeError, AttributeError, KifuseError) as error:
        raise DataError(f"{file}: not a kept task of format {FORMAT}; the file is damaged.") from error


def kept_inputs(file: Path) -> Inputs:
    """Read the hashes of a kept task's inputs, by split; an old file gives only its test inputs' hashes.

    Args:
        file: A file that `keep_task` wrote.

    Returns:
        As in `Task.input_hashes`; empty if the file cannot be read, which scoring will report.
    """
    try:
        found = read_json(file)
        # the metric does not matter here, and no folder may name code
        return found["inputs"] if "inputs" in found else _task(found | {"metric": "rouge_l"}).input_hashes()
    except (KeyError, TypeError, AttributeError, KifuseError):
        return {}


def kept_task(file: Path, test_hash: str) -> Task:
    """Read a kept task.

    Args:
        file: A file that `keep_task` wrote.
        test_hash: `Task.split_hash("test")` at the time of writing.

    Returns:
        The task, without training examples.

    Raises:
        DataError: The file is damaged, holds other examples than at that time, or names code that the caller
            does not.
    """
    found = read_json(file)
    try:
        metric = found["metric"]
    except (KeyError, TypeError) as error:
        raise DataError(f"{file}: not a kept task of format {FORMAT}; the file is damaged.") from error
    refuse_unnamed(metric, str(file))
    try:
        metric_name(metric)
    except DataError as error:
        raise DataError(f"{file}: {error}") from error
    try:
        task = _task(found)
    except (KeyError, TypeError, AttributeError, KifuseError) as error:
        raise DataError(f"{file}: not a kept task of format {FORMAT}; the file is damaged.") from error
    if task.split_hash("test") != test_hash:
        raise DataError(
            f"{file}: its test examples are not those that the task was learned with; the file is damaged."
        )
    return task


def kept_way(file: Path) -> Way | None:
    """Return the prompt format of a kept task; for an older kifuse's file it is found from the test examples.

    Raises:
        DataError: The file is damaged.
    """
    found = read_json(file)
    try:
        return found["asks"] if "asks" in found else way_of([Example.from_state(e) for e in found["test"]])
    except (KeyError, TypeError, AttributeError, KifuseError) as error:
        raise DataError(f"{file}: not a kept task of format {FORMAT}; the file is damaged.") from error


def _task(found: dict[str, Any]) -> Task:
    if found["format"] != FORMAT:
        raise KeyError("format")
    test = [Example.from_state(item) for item in found["test"]]
    labels = None if found["labels"] is None else tuple(found["labels"])
    return Task(found["name"], (), (), tuple(test), labels, found["metric"], found["source"])
