"""The score matrix of a task stream, and the metrics of continual learning on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from kifuse.errors import RunError


@dataclass(frozen=True, slots=True)
class Metric:
    """A number, or the reason why there is none."""

    value: float | None
    reason: str | None = None


_NEEDS_TWO = Metric(None, "needs at least two tasks")
# A reason names this many missing cells and counts the others.
_NAMED = 3


def needed_cells(count: int, full: bool = False) -> list[tuple[int, int]]:
    """List the cells of the matrix that the metrics need.

    Args:
        count: The number of tasks K.
        full: Also every score of a learned task after each later one, for forgetting and its curves.

    Returns:
        Cells (after, task) in the order in which they come up; 3K - 2 of them unless full.
    """
    last = {(count, task) for task in range(count)}
    learned = {(task + 1, task) for task in range(count)}
    before = {(task, task) for task in range(1, count)}
    triangle = {(after, task) for task in range(count) for after in range(task + 1, count)} if full else set()
    return sorted(last | learned | before | triangle)


class ScoreMatrix:
    """Test scores of a stream: one cell for a task after a number of learned tasks.

    The papers' a_{k,i} (score on the i-th task after learning the k-th, both from 1) is ``get(k, i - 1)``.
    """

    def __init__(self, tasks: Sequence[str], untested: Collection[int] = ()) -> None:
        """Start an empty matrix.

        Args:
            tasks: The names of the tasks in the order of learning.
            untested: Indices of the tasks without test examples; no metric counts them.

        Raises:
            RunError: If there are no tasks, or two have the same name.
        """
        self.tasks: tuple[str, ...] = tuple(tasks)
        if not self.tasks:
            raise RunError("a score matrix needs at least one task; found none.")
        twice = next((name for name in self.tasks if self.tasks.count(name) > 1), None)
        if twice is not None:
            raise RunError(f"task '{twice}' appears twice in the stream; expected every name once.")
        self._untested = frozenset(untested)
        self._cells: dict[tuple[int, int], float] = {}

    def set(self, after: int, task: int, score: float) -> None:
        """Enter a score; a later one for the same cell replaces it.

        Args:
            after: How many tasks were learned: 0 before any training, k after the k-th task.
            task: Index of the scored task, from 0.
            score: The score, from 0 to 100.

        Raises:
            RunError: If the cell is outside the matrix or the score no finite number.
        """
        self._check(after, task)
        if not math.isfinite(score):
            raise RunError(
                f"the score of {self._cell_name(after, task)} is {score}; expected a finite number."
            )
        self._cells[after, task] = float(score)

    def get(self, after: int, task: int) -> float | None:
        """Look up a score.

        Args:
            after: How many tasks were learned.
            task: Index of the scored task, from 0.

        Returns:
            The score, or None where none was entered.

        Raises:
            RunError: If the cell is outside the matrix.
        """
        self._check(after, task)
        return self._cells.get((after, task))

    def average_performance(self, learned: int | None = None) -> Metric:
        """AP: the mean over tasks of the score after the last task, mean_i a_{K,i}.

        Args:
            learned: Take the stream to end after so many tasks; None for the whole stream.

        Returns:
            The metric, from 0 to 100.
        """
        last = self._last(learned)
        cells = [(last, task) for task in self._tested(0, last)]
        return self._metric(cells, lambda: [self._cells[cell] for cell in cells])

    def forward_transfer(self, learned: int | None = None) -> Metric:
        """FWT: the mean score of each task just before its training, mean_{i=2..K} a_{i-1,i}.

        Args:
            learned: Take the stream to end after so many tasks; None for the whole stream.

        Returns:
            The metric, from 0 to 100.
        """
        last = self._last(learned)
        if last < 2:
            return _NEEDS_TWO
        cells = [(task, task) for task in self._tested(1, last)]
        return self._metric(cells, lambda: [self._cells[cell] for cell in cells])

    def backward_transfer(self, learned: int | None = None) -> Metric:
        """BWT: the mean change of each earlier task since it was learned, mean_{i<K} (a_{K,i} - a_{i,i}).

        Args:
            learned: Take the stream to end after so many tasks; None for the whole stream.

        Returns:
            The metric, from -100 (all forgotten) to 100.
        """
        last = self._last(learned)
        if last < 2:
            return _NEEDS_TWO
        pairs = [((last, task), (task + 1, task)) for task in self._tested(0, last - 1)]
        return self._metric(
            [cell for pair in pairs for cell in pair],
            lambda: [self._cells[end] - self._cells[start] for end, start in pairs],
        )

    def forgetting(self, learned: int | None = None) -> Metric:
        """Forgetting: the mean drop of each earlier task from its best score.

        In the papers' terms, mean_{i<K} max_{i<=j<K} (a_{j,i} - a_{K,i}).

        Args:
            learned: Take the stream to end after so many tasks; None for the whole stream.

        Returns:
            The metric; 0 means that nothing was forgotten, below 0 that old tasks got better.
        """
        last = self._last(learned)
        if last < 2:
            return _NEEDS_TWO
        earlier = self._tested(0, last - 1)
        past = {task: [(after, task) for after in range(task + 1, last)] for task in earlier}
        return self._metric(
            [cell for task in past for cell in (*past[task], (last, task))],
            lambda: [
                max(self._cells[cell] for cell in past[task]) - self._cells[last, task] for task in past
            ],
        )

    def to_json(self) -> dict[str, Any]:
        """Turn the matrix into a JSON value.

        Returns:
            The task names and the filled cells, in a fixed order.
        """
        cells = [
            {"after": after, "task": task, "score": self._cells[after, task]}
            for after, task in sorted(self._cells)
        ]
        return {"tasks": list(self.tasks), "cells": cells}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ScoreMatrix:
        """Rebuild a matrix.

        Args:
            data: What ``to_json`` gave.

        Returns:
            An equal matrix.

        Raises:
            RunError: If the value is not of that form.
        """
        try:
            matrix = cls(data["tasks"])
            for cell in data["cells"]:
                matrix.set(cell["after"], cell["task"], cell["score"])
        except (KeyError, TypeError) as error:
            raise RunError(f"not a score matrix: {error!r}; expected 'tasks' and 'cells'.") from error
        return matrix

    def _metric(self, cells: Iterable[tuple[int, int]], values: Callable[[], list[float]]) -> Metric:
        """The mean of some values, if all the cells they come from are there."""
        missing = sorted({cell for cell in cells if cell not in self._cells})
        if missing:
            named = ", ".join(self._cell_name(*cell) for cell in missing[:_NAMED])
            more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
            return Metric(None, f"not scored: {named}{more}")
        found = values()
        if not found:
            return Metric(None, "none of these tasks has test examples")
        return Metric(math.fsum(found) / len(found))

    def _tested(self, low: int, high: int) -> list[int]:
        return [task for task in range(low, high) if task not in self._untested]

    def _last(self, learned: int | None) -> int:
        if learned is None:
            return len(self.tasks)
        if not 1 <= learned <= len(self.tasks):
            raise RunError(f"learned: found {learned}, expected 1 to {len(self.tasks)} tasks.")
        return learned

    def _check(self, after: int, task: int) -> None:
        count = len(self.tasks)
        if not 0 <= after <= count:
            raise RunError(f"after: found {after}, expected 0 to {count} learned tasks.")
        if not 0 <= task < count:
            raise RunError(f"task: found index {task}, expected 0 to {count - 1}.")

    def _cell_name(self, after: int, task: int) -> str:
        when = f"after task {after}" if after else "before training"
        return f"{self.tasks[task]} {when}"
