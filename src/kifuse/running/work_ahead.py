"""How much work a run has to do, computed before it begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kifuse.config import RunConfig
from kifuse.methods.base import Method, TaskInfo
from kifuse.record.score_matrix import needed_cells
from kifuse.running.progress import Plan
from kifuse.running.start_from import earlier_than_first
from kifuse.streams import own_steps
from kifuse.tasks.memory import MemoryBuffer
from kifuse.tasks.task import Task


def empty_memory(config: RunConfig) -> MemoryBuffer:
    """The memory buffer of a run that has learned nothing yet."""
    memory = config.memory
    return MemoryBuffer(
        share=memory.share,
        per_task=memory.per_task,
        selection=memory.selection,
        seed=config.training.seed,
    )


def cells_to_score(config: RunConfig, method: Method, tasks: Sequence[Task]) -> list[tuple[int, int]]:
    """The cells (after, task) of the score matrix; joint training is scored only at the end."""
    count = len(tasks)
    jointly = method.old_data == "all"
    cells = (
        [(count, i) for i in range(count)]
        if jointly
        else needed_cells(count, full=config.evaluation.full_matrix)
    )
    return [(after, i) for after, i in cells if tasks[i].test]


def watch_moments(config: RunConfig, method: Method, count: int) -> set[int]:
    """After how many learned tasks watched tasks are scored; `count` is the number of all tasks."""
    ends = method.old_data == "all" or config.watch.when == "end"
    return {0, count} if ends else set(range(count + 1))


def passes(
    config: RunConfig,
    writers: Sequence[Method],
    tasks: Sequence[TaskInfo],
    sizes: Sequence[int],
    kept: int = 0,
) -> int:
    """Forward and backward passes that training on tasks of these training set sizes will take.

    Args:
        config: The run's configuration.
        writers: The method, and its `sources`.
        tasks: The tasks.
        sizes: Sizes of their training sets.
        kept: Examples of earlier tasks that the memory holds already.
    """
    method = writers[0]
    memory, epochs, batch = empty_memory(config), config.training.epochs, config.training.batch_size
    more = sum(each.more_examples for each in writers)
    work = 0
    for info, size in zip(tasks, sizes, strict=True):
        # mixed in, old examples lengthen every pass over the task
        mixed = kept if method.old_data == "mixed" else 0
        steps = own_steps(size + round(more * size) + mixed, epochs, batch) if more or mixed else info.steps
        info = replace(info, steps=steps, examples=size)
        work += steps + method.extra_passes(info, -(-kept // batch))
        kept += memory.quota(size)
    return work


def plan_of(
    config: RunConfig,
    writers: Sequence[Method],
    tasks: Sequence[Task],
    sizes: Sequence[int] | None = None,
    watched: Sequence[int] = (),
) -> Plan:
    """The whole work of a run.

    Args:
        config: The run's configuration.
        writers: The method that it names, and its `sources`.
        tasks: The tasks of its stream, in order.
        sizes: How many examples each task is trained on; None for all training examples of the task.
        watched: How many answers it takes to score each watched task.
    """
    training, method = config.training, writers[0]
    sizes = [len(task.train) for task in tasks] if sizes is None else list(sizes)
    trainings = [sum(sizes)] if method.old_data == "all" else sizes
    infos = [
        TaskInfo(
            i + earlier_than_first(config),
            "",
            own_steps(size, training.epochs, training.batch_size),
            batch_size=training.batch_size,
            examples=size,
        )
        for i, size in enumerate(trainings)
    ]
    scored = sum(len(tasks[i].test) for _, i in cells_to_score(config, method, tasks))
    scored += sum(watched) * len(watch_moments(config, method, len(tasks)))
    return Plan(passes(config, writers, infos, trainings), scored)
