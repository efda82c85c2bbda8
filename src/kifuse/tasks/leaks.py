"""Asserts that no example of a dev or test split gets into the memory buffer or into training.

Published benchmark data contains training examples that also appear word for word in test splits (a run's
record lists them under ``overlaps``). Such an example is a training example, so a rule "no hash of a test
example in memory" would refuse the data as it is published. Instead, everything that is kept or trained on
must come from a train split, and no more often than it appears there:

- An example is identified by its input and accepted answers (:meth:`Example.content_hash`) and by its id. A
  test example that equals a training example in content but has another id is refused. If neither has an id,
  or both have the same id, the two count as the same example.
- What is kept of a task comes from that task's own train split.
- The memory buffer keeps at most its share, or ``per_task``, of each task.

The splits are those of the run, after ``data.train_examples`` has shortened them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from kifuse.errors import RunError
from kifuse.tasks.memory import MemoryBuffer
from kifuse.tasks.task import Example, Task


def check_memory(memory: MemoryBuffer, tasks: Sequence[Task], gone: Collection[str] = ()) -> None:
    """Make sure that a memory buffer holds only training examples, and no more of them than allowed.

    Args:
        memory: The buffer.
        tasks: Every task whose examples it may hold; their dev and test splits are only used for the message.
        gone: Names of tasks that an earlier process learned and checked, and whose training data is no longer
            available, as for a learner whose tasks arrive over months; these tasks are skipped.

    Raises:
        RunError: It holds a task that is not among `tasks`, an example that is not in that task's train split
            (or more often than there), or too many examples; the message names task and example.
    """
    by_name = {task.name: task for task in tasks}
    for name in memory.tasks:
        if name in gone:
            continue
        if name not in by_name:
            raise RunError(f"The memory buffer holds the task '{name}', which is not a task of this run.")
        task, held = by_name[name], memory.examples(name)
        quota = memory.quota(len(task.train))
        if len(held) > quota:
            raise RunError(
                f"The memory buffer holds {len(held)} examples of task '{name}', more than the {quota} that "
                f"it may keep of {len(task.train)}."
            )
        if stray := _first_stray(held, [task]):
            raise _leak("The memory buffer", stray, [task], tasks)


def check_training(examples: Iterable[Example], tasks: Sequence[Task], others: Sequence[Task] = ()) -> None:
    """Make sure that training examples come from train splits.

    Args:
        examples: One pass over the training examples, before they are encoded.
        tasks: The tasks that they may come from: the task being learned, or all tasks for joint training.
        others: Further tasks of the run, only used to say where a wrong example comes from.

    Raises:
        RunError: An example is in none of their train splits, or appears more often than there.
    """
    if stray := _first_stray(examples, tasks):
        raise _leak("Training", stray, tasks, [*tasks, *others])


def _key(example: Example) -> bytes:
    """The identity of an example in 16 bytes: its content and its id."""
    found = hashlib.sha256(example.content_hash().encode("ascii"))
    if example.id is not None:
        found.update(example.id.encode("utf-8", "surrogatepass") + b".")
    return found.digest()[:16]


def _first_stray(examples: Iterable[Example], tasks: Sequence[Task]) -> Example | None:
    """The first example that the train splits do not hold, or do not hold often enough."""
    left = Counter(_key(example) for task in tasks for example in task.train)
    for example in examples:
        key = _key(example)
        if not left[key]:
            return example
        left[key] -= 1
    return None


def _leak(what: str, stray: Example, allowed: Sequence[Task], tasks: Sequence[Task]) -> RunError:
    """Make the error that says where a wrong example comes from."""
    key, known = _key(stray), stray.id
    places = [
        f"the {split} split of task '{task.name}'"
        for task in {task.name: task for task in tasks}.values()
        for split in ("dev", "test")
        if any(_key(example) == key for example in task.split(split))
    ]
    content = stray.content_hash()[:12]
    shown = f"an example (content {content})" if known is None else f"the example with id '{known}'"
    names = ", ".join(f"'{task.name}'" for task in allowed)
    found = f"it is in {' and '.join(places)}" if places else "no split holds it"
    return RunError(
        f"{what} would get {shown} that the train split of {names} does not hold, or not as often: {found}. "
        "This must never happen. Nothing was trained on it. If files of the run or of the data were "
        "changed by hand, put them back or start in a new output folder."
    )
