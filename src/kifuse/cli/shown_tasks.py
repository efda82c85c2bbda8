"""What `kifuse validate` prints about tasks: their format, how they are scored, what a model reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from kifuse.cli.visible_text import PROMPT, SPECIAL, TARGET, excerpt, styled, visible

if TYPE_CHECKING:
    from kifuse.tasks.data_findings import Findings, TaskFindings
    from kifuse.tasks.rendered_example import Piece
    from kifuse.tasks.rendering import Rendering
    from kifuse.tasks.task import Task

_LINES = 2
"""How many lines of a prompt an excerpt shows."""

_GAP = "… "


def print_origin(console: Console, tasks: Sequence[Task]) -> None:
    """Print the format of the tasks and how they are scored: once if it is the same for all of them."""
    for label, fact in (("read as", _format), ("scored by", _scoring), ("compared", _comparison)):
        values = {task.name: fact(task) for task in tasks}
        for value in dict.fromkeys(filter(None, values.values())):
            names = [name for name, own in values.items() if own == value]
            whose = "" if len(names) == len(tasks) else f" ({_few(names)})"
            _line(console, label, f"{value}{whose}")


def print_notes(console: Console, notes: Iterable[str]) -> None:
    """Print what is odd in the data, one entry for each note."""
    found = list(dict.fromkeys(notes))
    if not found:
        console.print("Nothing stands out: no duplicates, no contradictions, no overlaps, nothing is cut.\n")
        return
    console.print(Text("To know:", "bold"))
    for note in found:
        console.print(_grid(3, "  -", Text(visible(note))))
    console.print()


def print_excerpts(console: Console, tasks: Sequence[TaskFindings]) -> None:
    """Show the beginning and the end of each task's first example."""
    shown = [found for found in tasks if found.rendered is not None]
    skipped = _shared_beginning([found.rendered.prompt for found in shown if found.rendered])
    room = _LINES * (console.width - 12)
    for found in tasks:
        if found.rendered is None:
            continue
        prompt = styled(found.rendered.prompt[skipped:], PROMPT, lines=False)
        answer = styled(found.rendered.target, TARGET, lines=False)
        cut = ("  too long to be shown whole" if found.rendered.cut else "", "dim")
        console.print(Text.assemble(" ", (found.task.name, "bold"), cut))
        console.print(_grid(9, "   prompt", excerpt(Text.assemble(_GAP * (skipped > 0), prompt), room)))
        console.print(_grid(9, "   answer", excerpt(answer, room)))
    console.print()


def print_whole(console: Console, found: TaskFindings) -> None:
    """Show the first example of a task in full, and all that is known about the task."""
    task = found.task
    console.print(Text(task.name, "bold"))
    for label, value in (
        ("read as", _format(task)),
        ("scored by", _scoring(task)),
        ("compared", _comparison(task)),
        ("labels", ", ".join(map(visible, task.labels or ()))),
    ):
        if value:
            _line(console, label, value)
    if (lengths := found.lengths) is not None:
        _line(
            console,
            "tokens",
            "texts to continue; longer ones than data.max_input and data.max_target together are split"
            if lengths.longest_target == 0
            else f"inputs up to {lengths.longest_input:,}, answers up to {lengths.longest_target:,}; cut: "
            f"{lengths.cut_inputs:,} training and {lengths.cut_test_inputs:,} test inputs, "
            f"{lengths.cut_answers:,} training and {lengths.cut_test_answers:,} test answers",
        )
    for note in task.passed_over:
        _line(console, "not read", visible(note))
    if (clash := found.contradiction) is not None:
        one, other = (visible(answer) for answer in clash.answers)
        _line(console, "contrary", f"'{visible(clash.input)[-200:]}' is answered '{one}' and '{other}'")
    if found.rendered is not None:
        if found.rendered.cut:
            _line(
                console,
                "too long",
                "the model reads this example without a part of it, or in several pieces",
            )
        for label, pieces, style in (
            ("prompt", found.rendered.prompt, PROMPT),
            ("answer", found.rendered.target, TARGET),
        ):
            console.print(Text(f"  {label}:", "dim"))
            console.print(Padding(styled(pieces, style, lines=True), (0, 0, 0, 4)))
    console.print()


def legend(rendering: Rendering | None) -> Text:
    """Return the legend of the examples, in their colours."""
    if rendering is None:
        return Text("The first example of each task, as it is in the data:")
    form = "by the model's chat template" if rendering.by_template else "as plain text"
    return Text.assemble(
        ("What the model reads", "bold"),
        f", {form} ({rendering.why}): the prompt, ",
        ("the answer", TARGET),
        " that is learned, ",
        ("special tokens", SPECIAL),
        ", ⏎ for a line break.",
    )


def as_json(findings: Findings, notes: Sequence[str], steps: Callable[[Task], int | None]) -> dict[str, Any]:
    """Return everything that was found as a JSON value."""
    return {
        "tasks": [
            {
                "name": found.task.name,
                "format": found.task.format,
                "passed_over": list(found.task.passed_over),
                "metric": found.task.metric,
                "metric_why": found.task.metric_why,
                "comparison": found.task.comparison_why,
                "labels": None if found.task.labels is None else list(found.task.labels),
                "sizes": {split: len(found.task.split(split)) for split in ("train", "dev", "test")},
                "own_steps": steps(found.task),
                **found.facts(),
                "rendered": found.rendered.state() if found.rendered else None,
            }
            for found in findings.tasks
        ],
        "overlaps": [overlap._asdict() for overlap in findings.overlaps],
        "notes": list(notes),
    }


def _shared_beginning(prompts: Sequence[Sequence[Piece]]) -> int:
    """Count the pieces with which all prompts begin: a template's system message, which need not be shown."""
    if len(prompts) < 2:
        return 0
    return next((i for i, pieces in enumerate(zip(*prompts, strict=False)) if len(set(pieces)) > 1), 0)


def _format(task: Task) -> str:
    return visible(task.format)


def _scoring(task: Task) -> str:
    return f"{task.metric}: {task.metric_why}" if task.metric_why else str(task.metric)


def _comparison(task: Task) -> str:
    return visible(task.comparison_why)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _line(console: Console, label: str, value: str) -> None:
    console.print(_grid(11, f"  {label}", Text(value)))


def _grid(width: int, label: str, text: Text) -> Table:
    """Put a text beside its label, with its further lines below its first line."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(width=width)
    grid.add_column(overflow="fold")
    grid.add_row(label, text)
    return grid
