"""A run in the terminal: a live bar with the time left, or plain lines where nobody watches."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from kifuse.training.evaluator import Cell
from kifuse.training.progress import EVAL_STEP_SHARE, Plan, Progress

PLAIN_SECONDS = 20.0
"""How often a line is printed when the output is not a terminal."""


class ConsoleProgress(Progress):
    """Shows what a run does, how far it is and how long it still takes.

    Args:
        console: Where to.
        prefix: What stands before the method's name.
        runs_left: Runs of the same size that follow this one; counted into the time left.
    """

    def __init__(self, console: Console, *, prefix: str = "", runs_left: int = 0) -> None:
        self.console = console
        self.prefix = prefix
        self.runs_left = runs_left
        self.method = ""
        self.bar: Bar | None = None
        self.row: TaskID | None = None
        self.taken = 0
        self.total = self.done = self.at_start = self.base = 0.0
        self.started = self.spoke = time.monotonic()
        self.loss: float | None = None
        self.known: dict[str, float] = {}

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        (self.bar.console if self.bar else self.console).print(
            f"  {text}", highlight=False, markup=False, soft_wrap=True
        )

    def begin(self, method: str, plan: Plan, done: Plan) -> None:
        """Open the bar."""
        self.total = plan.work * (1 + self.runs_left)
        self.done = self.base = self.at_start = done.work
        self.started = self.spoke = time.monotonic()
        self.method = f"{self.prefix}{method}"
        self.say(
            f"{self.method}: {plan.steps - done.steps} steps, {plan.scored - done.scored} answers to score"
        )
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20),
                TimeElapsedColumn(),
            )
            self.bar = Bar(*columns, TextColumn("{task.fields[left]}"), console=self.console, transient=True)
            self.row = self.bar.add_task(self.method, total=self.total, left="")
            self.bar.update(self.row, completed=self.done)
            self.bar.start()

    def passes(self, done: int) -> None:
        """Note how much of the task's work is done; a step alone does not say."""
        self.taken = done

    def step(self, task: str, step: int, steps: int, loss: float | None) -> None:
        """Move on by a step."""
        if loss is not None:
            self.loss = loss
            return
        self.done = self.base + max(step, self.taken)
        shown = "" if self.loss is None else f", loss {self.loss:.2f}"
        self._show(f"{self.method}: {task}, step {step}/{steps}{shown}")
        if step == steps:
            self.base, self.loss, self.taken = self.done, None, 0

    def scoring(self, task: str, done: int, total: int) -> None:
        """Move on by some scored examples."""
        self.done = self.base + EVAL_STEP_SHARE * done
        self._show(f"{self.method}: scoring {task}, {done}/{total}")
        if done >= total:
            self.base = self.done

    def scored(self, after: int, task: str, cell: Cell) -> None:
        """Say a score, and what changed since the task was last scored."""
        before = self.known.get(task)
        change = "" if before is None else f" ({cell.score - before:+.1f})"
        self.known[task] = cell.score
        moment = "before any training" if after == 0 else f"after task {after}"
        self.say(f"{moment}: {task} {cell.score:.1f}{change}")

    def finish(self) -> None:
        """Close the bar, also after an error."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _show(self, text: str) -> None:
        now = time.monotonic()
        if self.bar is not None and self.row is not None:
            self.bar.update(
                self.row, completed=self.done, total=self.total, description=text, left=self._left(now)
            )
        elif now - self.spoke >= PLAIN_SECONDS:
            self.spoke = now
            share = 100 * self.done / self.total if self.total else 100.0
            self.say(f"[{share:3.0f}%] {text}, {self._left(now)}")

    def _left(self, now: float) -> str:
        moved = self.done - self.at_start
        if moved < 3:
            return "time left: measuring"
        seconds = (now - self.started) / moved * max(self.total - self.done, 0.0)
        return f"about {int(seconds) // 60}:{int(seconds) % 60:02d} left"
