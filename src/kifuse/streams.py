"""Opens the stream of tasks that a configuration asks for. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import ceil
from typing import TYPE_CHECKING

from kifuse.benchmarks.catalog import load_benchmark
from kifuse.errors import DataError
from kifuse.scoring.own_function import is_own, register_metric
from kifuse.tasks.holding_out import hold_out
from kifuse.tasks.readers import read_stream
from kifuse.tasks.task import Task, TaskStream
from kifuse.tasks.turns import with_learned_turns

if TYPE_CHECKING:
    from kifuse.config import DataConfig


def open_stream(data: DataConfig, seed: int) -> TaskStream:
    """Reads the tasks of a run, in their order and cut to the requested sizes.

    Args:
        data: The configuration's section ``data``; without an order, a benchmark has its first order.
        seed: Seed of the subsets.

    Returns:
        The stream.

    Raises:
        DataError: The data is missing or wrong, or a task has no training examples.
    """
    name_metrics("data.own_metrics", data.own_metrics)
    if data.benchmark is not None:
        if data.metric is not None:
            raise DataError(
                f"data.metric: found {data.metric!r} with the benchmark {data.benchmark!r}, which has its "
                "own metric. Leave it out, or give data.path without data.benchmark."
            )
        stream = load_benchmark(data.benchmark, data.order, data.path, superni_metric=data.superni_metric)
    elif data.path is not None:
        if data.metric is not None and is_own(data.metric):
            name_metrics("data.metric", [data.metric])
        order = data.order if isinstance(data.order, list) else None
        stream = read_stream(
            data.path,
            order,
            layout=data.layout,
            superni_metric=data.superni_metric,
            format=data.format,
            columns=data.columns,
        )
        if data.metric is not None:
            stream = replace(stream, tasks=tuple(_scored_by(data.metric, task) for task in stream.tasks))
    else:
        raise DataError("data: found neither benchmark nor path, expected at least one of them.")
    if data.superni_metric != "rouge_l" and not all(t.source.startswith("superni/") for t in stream.tasks):
        raise DataError(
            f"data.superni_metric: found {data.superni_metric!r}, but the data is not in SuperNI's layout; "
            "use data.metric."
        )
    return replace(stream, tasks=tuple(chosen_part(task, data, seed) for task in stream.tasks))


def chosen_part(task: Task, data: DataConfig, seed: int) -> Task:
    """Select the examples of a task for a run: the answers that are learned, in the requested number.

    Args:
        task: The task as it was read.
        data: The configuration's section ``data``.
        seed: Seed of the draw.

    Raises:
        DataError: The task has no training examples.
    """
    found = with_learned_turns(task, data.train_on)
    if not found.train:
        where = f"{data.path}: " if data.path else ""
        raise DataError(
            f"{where}Task '{task.name}': it has no training examples, so there is nothing to learn."
        )
    if data.hold_out and not found.dev:
        found = hold_out(found, "dev", seed, data.hold_out)
    found = found.subset(data.train_examples, data.dev_examples, data.test_examples, seed)
    return _scored_on_dev(found) if data.scored_on == "dev" else found


def _scored_on_dev(task: Task) -> Task:
    """Return the task with its dev examples as test examples; the real test examples are not used at all."""
    if not task.dev:
        raise DataError(
            f"Task '{task.name}': it has no dev examples to be scored on (data.scored_on: dev). Give it "
            "some, or set data.hold_out to use a share of its training examples."
        )
    said = (
        f"Task '{task.name}': it is scored on its {len(task.dev)} dev examples; its {len(task.test)} test "
        "examples are not used."
    )
    return replace(task, dev=(), test=task.dev, warnings=(*task.warnings, said))


def name_metrics(key: str, functions: Iterable[str]) -> None:
    """Allow functions that the caller names to score tasks; functions that only a folder names do not run.

    Args:
        key: The place where the caller names them, for messages.
        functions: The functions' names.

    Raises:
        DataError: A function does not exist.
    """
    for function in functions:
        try:
            register_metric(function)
        except DataError as error:
            raise DataError(f"{key}: {error}") from error


def _scored_by(metric: str, task: Task) -> Task:
    try:
        return replace(task, metric=metric, metric_why="named in data.metric")
    except DataError as error:
        raise DataError(f"data.metric: {error}") from error


def own_steps(examples: int, epochs: int, batch_size: int) -> int:
    """The optimizer steps of a task on its own examples: only the last of all batches may be short."""
    return ceil(examples * epochs / batch_size)
