"""Single examples for the page that were lost, kept or gained, each with its question and answers."""

from __future__ import annotations

from dataclasses import dataclass, field

from kifuse.reporting.changes import Change, changes
from kifuse.reporting.run_groups import Run
from kifuse.reporting.wording import clean, count

SHOWN = 8
"""How many examples of each kind are shown."""

_LONGEST = 6000
_KINDS = {
    "lost": "Right once the task was learned, wrong after the last task.",
    "kept": "Right both times.",
    "gained": "Wrong once the task was learned, right after the last task.",
}


@dataclass(frozen=True)
class Example:
    """One example with the run's two answers."""

    task: str
    id: str | None
    input: str
    expected: list[str]
    learned: str
    final: str
    right_when_learned: bool
    right_at_end: bool


@dataclass(frozen=True)
class Kind:
    """Examples of one kind: `name` is lost, kept or gained. The run has `total` of them; some are shown."""

    name: str
    meaning: str
    total: int
    shown: list[Example]


@dataclass
class Examples:
    """All kinds, or the reason why there are none.

    Attributes:
        kinds: Lost, kept, gained.
        reason: Why there are none; empty if there are some.
        notes: The files that could not be read.
        counted: Whether the kinds are only counted, with no text of any example.
    """

    kinds: list[Kind] = field(default_factory=list)
    reason: str = ""
    notes: list[str] = field(default_factory=list)
    counted: bool = False


def examples(run: Run, *, texts: bool = True) -> Examples:
    """Pick examples of a run from its predictions.

    Args:
        run: The run.
        texts: Whether inputs, expected answers and predictions are shown; else the kinds are only counted.

    Returns:
        Some examples of each kind, spread over the tasks; or the reason why there are none.
    """
    record = run.record
    if record.method.data_class == "all data":
        return Examples(reason="All tasks were trained at once, so no example has a before and an after.")
    if len(record.tasks) < 2:
        return Examples(
            reason="The run has one task, so there is no earlier one to lose or keep examples of."
        )
    if all(task.sizes.get("test") == 0 for task in record.tasks[:-1]):
        return Examples(reason="No task before the last has test examples.")
    if record.status == "running":
        return Examples(reason="Examples are compared once the run is finished.")
    if run.folder is None:
        return Examples(reason="The record was kept without the run's predictions.")
    found = changes(run.folder, SHOWN if texts else 0)
    kinds = [
        Kind(name, meaning, getattr(found, f"{name}_count"), [_example(c) for c in getattr(found, name)])
        for name, meaning in _KINDS.items()
    ]
    # a note contains the path of a file
    notes = [clean(note) for note in found.notes] if texts else []
    if not any(kind.total for kind in kinds):
        reason = "No example was answered right, neither when its task was learned nor at the end."
        absent = "The predictions of the run are missing."
        return Examples(reason=absent if found.notes else reason, notes=notes)
    return Examples(kinds=kinds, notes=notes, counted=not texts)


def _example(change: Change) -> Example:
    answer = change.answers[0]
    if answer is None:
        raise ValueError(f"{change.task}: there is an example without an answer of this run.")
    return Example(
        task=clean(change.task),
        id=None if change.id is None else clean(change.id),
        input=_cut(change.input),
        expected=[_cut(reference) for reference in change.references],
        learned=_cut(answer.learned),
        final=_cut(answer.final),
        right_when_learned=answer.right_when_learned,
        right_at_end=answer.right_at_end,
    )


def _cut(text: str) -> str:
    """Leave out the middle of a very long text."""
    text = clean(text)
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2
    return f"{text[:half]}\n[… {count(len(text) - 2 * half, 'character')} left out …]\n{text[-half:]}"
