"""A task that was learned, as far as it is needed later: its test examples, and the way it asks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kifuse.errors import DataError, KifuseError
from kifuse.io.storage import read_json, write_json
from kifuse.scoring.metrics import metric_name
from kifuse.scoring.own_function import refuse_unnamed
from kifuse.tasks.overlaps import Inputs
from kifuse.tasks.questions import Way, way_of
from kifuse.tasks.task import Example, Task

FORMAT = 1


def keep_task(file: Path, task: Task, probe: Sequence[Example] = ()) -> None:
    """Write what scoring needs of a task: its test examples, labels and metric; not what it was trained on.

    A probe is the exception: a few examples that tell later whether the task is still known. Of its inputs
    hashes are kept as well, so that those of later tasks can be held against them.

    Raises:
        KifuseError: The file cannot be written.
    """
    test = [example.state() for example in task.test]
    labels = None if task.labels is None else list(task.labels)
    more = {"probe": [example.state() for example in probe]} if probe else {}
    write_json(
        file,
        {"format": FORMAT, "name": task.name, "metric": task.metric, "labels": labels, "source": task.source}
        | {"test": test, "inputs": task.input_hashes(), "asks": way_of([*task.train, *task.test])}
        | more,
    )


def kept_probe(file: Path) -> list[Example]:
    """Read the examples that were kept as a task's probe; none where none were.

    Raises:
        DataError: The file is damaged.
    """
    found = read_json(file)
    try:
        return [Example.from_state(item) for item in found.get("probe", ())]
    except (KeyError, TypeError, AttributeError, KifuseError) as error:
        raise DataError(f"{file}: not a kept task of format {FORMAT}; the file is damaged.") from error


def kept_inputs(file: Path) -> Inputs:
    """Read the hashes of a kept task's inputs, by split; of one kept before there were any, its test inputs'.

    Args:
        file: As `keep_task` wrote it.

    Returns:
        As `Task.input_hashes` gave them; nothing where the file cannot be read, which scoring will say.
    """
    try:
        found = read_json(file)
        # what scores it does not matter here, and no folder names code
        return found["inputs"] if "inputs" in found else _task(found | {"metric": "rouge_l"}).input_hashes()
    except (KeyError, TypeError, AttributeError, KifuseError):
        return {}


def kept_task(file: Path, test_hash: str) -> Task:
    """Read a kept task.

    Args:
        file: As `keep_task` wrote it.
        test_hash: `Task.split_hash("test")` at that time.

    Returns:
        The task, without training examples.

    Raises:
        DataError: The file is damaged, holds other examples than it did, or names code that the caller does
            not.
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
            f"{file}: its test examples are not those of the time of learning; the file is damaged."
        )
    return task


def kept_way(file: Path) -> Way | None:
    """How the task of a kept file asks; a file of an older kifuse is told by its test examples.

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
