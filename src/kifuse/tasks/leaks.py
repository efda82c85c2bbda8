"""Asserts that nothing of a dev or test split reaches the memory buffer or training.

What can be asserted. Published benchmark data hold train examples that stand in test splits as well, word for
word (the record of a run lists them under ``overlaps``). Such an example is a training example, and a rule
"no hash of a test example in memory" would refuse the data as they are published. What must hold instead is
that everything that is kept or trained on comes out of a train split, and no more often than it stands there:

- An example is known by what it asks and accepts (:meth:`Example.content_hash`) and by its id. A test example
  that equals a training example in content but carries another id is refused; where neither has an id, or
  both have the same, the two are one and the same example.
- What is kept of a task comes from that task's own train split.
- The memory buffer keeps at most its share, or ``per_task``, of each task.

The splits are those of the run, after ``data.train_examples`` has cut them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from kifuse.errors import RunError
from kifuse.tasks.memory import MemoryBuffer
from kifuse.tasks.task import Example, Task

_Key = tuple[str, str | None]


def check_memory(memory: MemoryBuffer, tasks: Sequence[Task], gone: Collection[str] = ()) -> None:
    """Make sure that a memory buffer holds training examples only, and no more of them than it may.

    Args:
        memory: The buffer.
        tasks: Every task whose examples it may hold; their dev and test splits are looked at for the message.
        gone: Names of tasks that were learned and checked in an earlier process and whose training data is
            not at hand any more, as for a learner whose tasks arrive over months; they are passed over.

    Raises:
        RunError: It holds a task that is not among them, an example that is none of that task's train split
            (or more often than there), or too many; names task and example.
    """
    by_name = {task.name: task for task in tasks}
    for name in memory.tasks:
        if name in gone:
            continue
        if name not in by_name:
            raise RunError(f"The memory buffer holds the task '{name}', which is none of this run's.")
        task, held = by_name[name], memory.examples(name)
        quota = memory.quota(len(task.train))
        if len(held) > quota:
            raise RunError(
                f"The memory buffer holds {len(held)} examples of task '{name}', more than the {quota} it "
                f"may keep of {len(task.train)}."
            )
        if stray := _first_stray(held, [task]):
            raise _leak("The memory buffer", stray, [task], tasks)


def check_training(examples: Iterable[Example], tasks: Sequence[Task], others: Sequence[Task] = ()) -> None:
    """Make sure that what is trained on comes out of train splits.

    Args:
        examples: One pass over what is trained on, before it is encoded.
        tasks: The tasks that it may come from: the task being learned, or all of them for joint training.
        others: Further tasks of the run, only looked at to say where a stray example comes from.

    Raises:
        RunError: An example is in none of their train splits, or comes more often than there.
    """
    if stray := _first_stray(examples, tasks):
        raise _leak("Training", stray, tasks, [*tasks, *others])


def _key(example: Example) -> _Key:
    return example.content_hash(), example.id


def _first_stray(examples: Iterable[Example], tasks: Sequence[Task]) -> Example | None:
    """The first example that the train splits do not hold, or do not hold so often."""
    left = Counter(_key(example) for task in tasks for example in task.train)
    for example in examples:
        key = _key(example)
        if not left[key]:
            return example
        left[key] -= 1
    return None


def _leak(what: str, stray: Example, allowed: Sequence[Task], tasks: Sequence[Task]) -> RunError:
    """Word where an example stands that should not be there."""
    content, known = _key(stray)
    places = [
        f"the {split} split of task '{task.name}'"
        for task in {task.name: task for task in tasks}.values()
        for split in ("dev", "test")
        if any(_key(example) == (content, known) for example in task.split(split))
    ]
    shown = f"the example with id '{known}'" if known is not None else f"an example (content {content[:12]})"
    names = ", ".join(f"'{task.name}'" for task in allowed)
    found = f"it stands in {' and '.join(places)}" if places else "no split holds it"
    return RunError(
        f"{what} would get {shown} that the train split of {names} does not hold, or not so often: {found}. "
        "This must never happen; nothing was trained on it. If files of the run or of the data were changed "
        "by hand, put them back or start in a new output folder."
    )
