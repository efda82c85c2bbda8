"""Sets examples aside from a task's training examples, always the same ones."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from kifuse.errors import counted
from kifuse.tasks.sampling import visiting_order
from kifuse.tasks.task import Example, Split, Task

HELD_OUT = 0.1
"""Share of the training examples that is set aside for a split that the data does not have."""

MOST_HELD_OUT = 200
"""Most examples to set aside: more would cost time at every later task and add little."""


def hold_out(task: Task, split: Split, seed: int, share: float = HELD_OUT) -> Task:
    """Set a part of the training examples aside; examples with the same input stay together.

    Args:
        task: The task; its own examples of the split are replaced.
        split: The split that the part becomes.
        seed: Seed of the draw.
        share: Share of the training examples; at most 200 examples.

    Returns:
        The task, with a warning that gives the number of examples.
    """
    total = len(task.train)
    count = min(MOST_HELD_OUT, int(total * share) or (1 if total > 1 else 0))
    alike: dict[str, list[int]] = defaultdict(list)
    asked = [example.input_hash() for example in task.train]
    for place, key in enumerate(asked):
        alike[key].append(place)
    purpose = "held out" if split == "test" else f"held out for {split}"
    order = visiting_order(task.train, task.labels, (seed, task.name, purpose))
    groups = list(dict.fromkeys(asked[place] for place in order))
    chosen: set[int] = set()
    for key in groups:
        if len(chosen) + len(alike[key]) <= count:
            chosen.update(alike[key])
    least = min(groups, key=lambda key: len(alike[key]))
    if not chosen and 2 * len(alike[least]) <= total and len(alike[least]) <= MOST_HELD_OUT:
        chosen.update(alike[least])
    if chosen:
        were = "was" if len(chosen) == 1 else "were"
        said = f"{counted(len(chosen), 'training example')} {were} set aside as its {split} set"
        said += "" if len(groups) == total else "; examples that ask the same stayed together"
    else:
        said = (
            f"no {split} set was set aside, as its training examples ({total}) ask too few different "
            f"things; give {split} examples"
        )
    aside = {split: tuple(e for i, e in enumerate(task.train) if i in chosen)}
    return replace(
        task,
        train=Example.held(e for i, e in enumerate(task.train) if i not in chosen),
        warnings=(*task.warnings, f"Task '{task.name}': {said}."),
        **aside,
    )
