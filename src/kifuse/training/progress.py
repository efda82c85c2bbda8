"""What a run tells while it goes on; the terminal's own way of showing it lives in the command line."""

from __future__ import annotations

from dataclasses import dataclass

from kifuse.training.evaluator import Cell

EVAL_STEP_SHARE = 0.07
"""Work of scoring one short example, in optimizer steps of 8 examples: for the time left, until measured."""


@dataclass(frozen=True)
class Plan:
    """The work of a run: forward and backward passes, and examples to score."""

    steps: int
    scored: int

    @property
    def work(self) -> float:
        """In units of one pass."""
        return self.steps + EVAL_STEP_SHARE * self.scored


class Progress:
    """Listener of a run; this one says nothing. All methods may be overridden."""

    def say(self, text: str) -> None:
        """One line about what is going on."""

    def begin(self, method: str, plan: Plan, done: Plan) -> None:
        """The run starts, or goes on after `done`."""

    def passes(self, done: int) -> None:
        """Forward and backward passes taken in this task so far, memory steps included."""

    def step(self, task: str, step: int, steps: int, loss: float | None) -> None:
        """An optimizer step was taken."""

    def scoring(self, task: str, done: int, total: int) -> None:
        """Some test examples were scored."""

    def scored(self, after: int, task: str, cell: Cell) -> None:
        """A cell of the score matrix is known."""

    def finish(self) -> None:
        """The run is complete."""
