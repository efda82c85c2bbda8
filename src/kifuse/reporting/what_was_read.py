"""What the model read of each task: counts of the data, the format, and one example as it is rendered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from kifuse.record.run_record import RunRecord, TaskRecord
from kifuse.reporting.rendered_file import Pieces, rendered
from kifuse.reporting.run_groups import Run
from kifuse.reporting.run_pictures import numbered
from kifuse.reporting.tables import Cell, Table
from kifuse.reporting.wording import NONE, clean, count, listed

_LONGEST = 6000
"""How many characters of a prompt or an answer are shown; a longer text loses its middle."""


@dataclass(frozen=True)
class ReadExample:
    """A test example as the model reads it: the pieces of prompt and answer, and whether it was too long."""

    task: str
    prompt: Pieces
    answer: Pieces
    cut: bool

    @property
    def beginning(self) -> str:
        """The text of the prompt without its special tokens."""
        return "".join(text for text, special in self.prompt if not special)


@dataclass
class WhatWasRead:
    """The page's section "What the model read".

    Attributes:
        counts: A table with a line for each task.
        facts: The format of the data and how it is scored, each with the tasks for which this holds.
        passed_over: Parts of the data that were not read.
        examples: One example of each task; none if texts are left out.
        left_out: Whether texts were left out.
    """

    counts: Table
    facts: list[tuple[str, str]] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)
    examples: list[ReadExample] = field(default_factory=list)
    left_out: bool = False


def what_was_read(run: Run, *, texts: bool = True) -> WhatWasRead | None:
    """Collect what the model of a run read.

    Args:
        run: The run.
        texts: Whether examples are shown.

    Returns:
        The section; None for the record of an older kifuse, which did not look at its data.
    """
    record = run.record
    if all(task.repeated is None for task in record.tasks):
        return None
    shown = rendered(run.folder) if texts else {}
    examples = [
        ReadExample(clean(task.name), _shortened(prompt), _shortened(answer), cut)
        for task in record.tasks
        if task.name in shown
        for prompt, answer, cut in [shown[task.name]]
    ]
    passed_over = [f"{clean(task.name)}: {clean(each)}" for task in record.tasks for each in task.passed_over]
    return WhatWasRead(_counts(record), _facts(record), passed_over, examples, not texts)


def _counts(record: RunRecord) -> Table:
    heads = ["task", "longest input", "longest answer", "inputs cut", "answers cut"]
    heads += ["repeated", "contradictions", "test also trained"]
    table = Table("read", "What the model read", heads)
    for i, task in enumerate(record.tasks, start=1):
        cut_inputs, cut_answers = (
            _sum(task.cut_inputs, task.cut_test_inputs),
            _sum(task.cut_answers, task.cut_test_answers),
        )
        repeated = None if task.repeated is None else sum(task.repeated.values())
        values = [task.longest_input, task.longest_target, cut_inputs, cut_answers]
        values += [repeated, task.contradictions, task.also_trained]
        table.rows.append([Cell(numbered(i, task.name)), *map(_amount, values)])
    table.notes.append(
        "Lengths are in tokens, before cutting. Counts are of training and test examples together. Inputs "
        "that are too long lose their middle, and answers their end. Repeated examples are equal to "
        "another one of their split, contradictions are training inputs whose answers contradict each "
        "other, and the last column counts test examples whose input is also trained on."
    )
    return table


def _facts(record: RunRecord) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    if record.rendering:
        found.append(("form", f"{clean(record.rendering.get('form'))}: {clean(record.rendering.get('why'))}"))
    questions: list[tuple[str, Callable[[TaskRecord], str]]] = [
        ("read as", lambda task: task.format or ""),
        ("scored by", lambda task: f"{task.metric}: {task.metric_why}" if task.metric_why else ""),
        ("compared", lambda task: task.comparison or ""),
    ]
    for label, fact in questions:
        values = [(clean(task.name), clean(fact(task))) for task in record.tasks]
        for value in dict.fromkeys(value for _, value in values if value):
            names = [name for name, own in values if own == value]
            whose = "" if len(names) == len(values) else f" ({_few(names)})"
            found.append((label, f"{value}{whose}"))
    return found


def _few(names: list[str]) -> str:
    return listed(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"


def _shortened(pieces: Pieces) -> Pieces:
    """Leave out the middle of the longest piece of a very long text."""
    spare = sum(len(text) for text, _ in pieces) - _LONGEST
    if spare <= 0:
        return [(clean(text), special) for text, special in pieces]
    longest = max(range(len(pieces)), key=lambda i: len(pieces[i][0]))
    return [
        (clean(_without_middle(text, spare) if i == longest else text), special)
        for i, (text, special) in enumerate(pieces)
    ]


def _without_middle(text: str, spare: int) -> str:
    half = max(len(text) - spare, 0) // 2
    left = count(len(text) - 2 * half, "character")
    return f"{text[:half]}\n[… {left} left out …]\n{text[len(text) - half :]}"


def _sum(*values: int | None) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _amount(value: int | None) -> Cell:
    return Cell(NONE) if value is None else Cell(f"{value:,}", float(value))
