"""What a run reports while it goes on; `kifuse.terminal` shows it in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kifuse.answering.evaluator import Cell

EVAL_STEP_SHARE = 0.07
"""Work of scoring one short example, in optimizer steps of 8 examples; the time left is estimated with it."""


@dataclass(frozen=True)
class Plan:
    """The work of a run: forward and backward passes, and examples to score."""

    steps: int
    scored: int

    @property
    def work(self) -> float:
        """The work in units of one pass."""
        return self.steps + EVAL_STEP_SHARE * self.scored


@dataclass(frozen=True)
class RowScore:
    """One score of a row of the matrix.

    Attributes:
        task: The task's name.
        score: 0 to 100.
        change: Points since the task was last scored; None if this is the first time.
        learned: Whether the model has been trained on the task.
    """

    task: str
    score: float
    change: float | None
    learned: bool


class Progress:
    """Listener of a run; this one says nothing. All methods may be overridden."""

    def say(self, text: str) -> None:
        """One line about what is going on."""

    def stream(self, tasks: Sequence[str], learned: int) -> None:
        """The tasks in their order, of which the first `learned` were learned before."""

    def begin(self, method: str, plan: Plan, done: Plan) -> None:
        """The run starts, or goes on after `done`."""

    def training(self, task: str, work: int) -> None:
        """Training on a task begins; it takes `work` forward and backward passes, memory steps included."""

    def passes(self, done: int) -> None:
        """Forward and backward passes taken in this task so far, memory steps included."""

    def step(self, task: str, step: int, steps: int, loss: float | None) -> None:
        """An optimizer step was taken."""

    def logged(self, task: str, step: int, values: Mapping[str, Any]) -> None:
        """Numbers of a step, by name: loss, learning rate, and the method's own numbers."""

    def event(self, task: str, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Something that happened once, such as a fusion; it goes on record too."""

    def method_says(self, task: str, step: int, text: str, once: bool) -> None:
        """What the method did or measured, in its own words.

        Args:
            task: Name of the task.
            step: The step.
            text: The words.
            once: Whether it happened once and is on record; otherwise it is the current state of something.
        """

    def scoring(self, task: str, done: int, total: int) -> None:
        """Some test examples were scored."""

    def scored(self, after: int, task: str, cell: Cell) -> None:
        """A cell of the score matrix is known."""

    def row(self, after: int, scores: Sequence[RowScore]) -> None:
        """All that was to be scored after so many tasks is known: the task just learned, then the others."""

    def saved(self, folder: Path) -> str | None:
        """The run's folder holds something new to look at: a task is done, or the run is.

        Args:
            folder: The run's folder.

        Returns:
            None, or one line about what this listener could not do; it is then said to all.
        """

    def finish(self) -> None:
        """The run is complete."""

    def stop(self) -> None:
        """Nothing more comes for now, because the run is complete, was stopped or has failed."""
