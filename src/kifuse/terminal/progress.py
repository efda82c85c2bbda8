"""A run in the terminal: a live view with the time left, or plain lines where nobody watches."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from kifuse.answering.evaluator import Cell
from kifuse.running.log_file import plain
from kifuse.running.progress import EVAL_STEP_SHARE, Plan, Progress, RowScore
from kifuse.terminal.safe_console import SafeConsole
from kifuse.terminal.view import View, left, row_text

PLAIN_SECONDS = 20.0
"""How often a line is printed when the output is not a terminal."""
MEASURED = 3
"""The time left is shown once so many units of work were measured."""


@dataclass
class Pace:
    """How long the work of the runs so far took in this process.

    Attributes:
        seconds: Wall time.
        work: Forward and backward passes, see `Plan.work`.
    """

    seconds: float = 0.0
    work: float = 0.0

    def seconds_for(self, work: float, seconds: float, done: float) -> float | None:
        """Estimate how long some work will take.

        Args:
            work: The work.
            seconds: Time that the current run has taken so far.
            done: Work that the current run has done so far.

        Returns:
            Seconds; None while too little is measured.
        """
        measured = self.work + done
        return None if measured < MEASURED else (self.seconds + seconds) / measured * work


class ConsoleProgress(Progress):
    """Shows what a run does, how far it is and how long it still takes.

    Args:
        console: Where to print. Only a terminal that can move its cursor gets the live view.
        prefix: Text before the method's name.
        runs_left: Runs of the same size that follow this one; they count into the time left.
        title: What the run is called in the first line, in place of the method's name.
        label: What the live view calls the run.
        later: Work of all the runs that follow, of any size; if given, the time left for all runs is shown
            too.
        pace: How long the runs before took. This run's own time is added to it.
    """

    def __init__(
        self,
        console: Console,
        *,
        prefix: str = "",
        runs_left: int = 0,
        title: str = "",
        label: str = "",
        later: float = 0.0,
        pace: Pace | None = None,
    ) -> None:
        self.console = console
        self.prefix, self.title, self.label = prefix, title, label
        self.runs_left, self.later, self.pace = runs_left, later, pace or Pace()
        self.running = False
        self.view = View()
        self.live: Live | None = None
        self.total = self.done = self.at_start = self.base = 0.0
        self.started = self.spoke = time.monotonic()
        self.phase: tuple[str, ...] = ()
        self._new_task("", 0)

    def _new_task(self, name: str, work: int) -> None:
        self.task, self.work, self.taken, self.phase = name, work, 0, ()
        self.view.loss = self.view.rate = self.view.task_left = None
        self.measured = ""
        """What the method measured last, in words."""
        self.from_work: tuple[float, int] | None = None
        """The time at the end of the first step seen of the task, and the passes taken by then."""

    def say(self, text: str) -> None:
        """Print a line above the live view."""
        self._print(Text(plain(text)), soft_wrap=True)

    def _print(self, text: Text, *, soft_wrap: bool = False) -> None:
        line = Text("  ").append_text(text)
        console = self.live.console if self.live else self.console
        console.print(line, highlight=False, soft_wrap=soft_wrap or not console.is_terminal)

    def stream(self, tasks: Sequence[str], learned: int) -> None:
        """Note the tasks."""
        self.view.tasks, self.view.learned = tuple(tasks), learned

    def begin(self, method: str, plan: Plan, done: Plan) -> None:
        """Open the live view."""
        self.total = plan.work * (1 + self.runs_left)
        self.done = self.base = self.at_start = done.work
        self.started = self.spoke = time.monotonic()
        self.running = True
        self.view.method = self.title or f"{self.prefix}{method}"
        self._share()
        self.say(
            f"{self.view.method}: {plan.steps - done.steps} steps, "
            f"{plan.scored - done.scored} answers to score"
        )
        self.view.method = self.label or self.view.method
        if self.console.is_interactive and not self.console.quiet and self.live is None:
            self.live = Live(self.view, console=self.console, transient=True)
            self.live.start()

    def training(self, task: str, work: int) -> None:
        """Begin to measure the task."""
        self._new_task(task, work)
        self.view.current, self.view.doing = task, "starting"

    def passes(self, done: int) -> None:
        """Note how much of the task's work is done; a step may take several passes."""
        self.taken = done
        if self.phase == ("training", self.task):
            self.done = self.base + done

    def _enter(self, *phase: str) -> None:
        """Begin a phase: what the phases before have done stays done."""
        if self.phase != phase:
            self.phase, self.base = phase, self.done

    def step(self, task: str, step: int, steps: int, loss: float | None) -> None:
        """Move on by a step."""
        if loss is not None:
            self.view.loss = loss
            return
        now = time.monotonic()
        if task != self.task:
            self._new_task(task, steps)
        self._enter("training", task)
        taken = max(step, self.taken)
        if self.from_work is None:
            self.from_work = (now, taken)
            # steps that an earlier process took are not part of this one's time
            self.at_start += taken - 1 if step > 1 else 0
        self.done = self.base + taken
        self._task_left(now, taken, max(self.work, steps))
        self._show(now, task, f"step {step}/{steps}")

    def _task_left(self, now: float, taken: int, work: int) -> None:
        """Estimate how long the rest of the task takes, memory steps included, at the pace so far."""
        since, before = self.from_work or (now, taken)
        if taken - before >= MEASURED:
            self.view.task_left = (now - since) / (taken - before) * max(work - taken, 0)

    def logged(self, task: str, step: int, values: Mapping[str, Any]) -> None:
        """Note the learning rate."""
        if "learning_rate" in values:
            self.view.rate = float(values["learning_rate"])

    def method_says(self, task: str, step: int, text: str, once: bool) -> None:
        """Show what the method did or measured last; print a line of what happens once."""
        self.view.news = f"{task}, step {step}: {text}"
        if once:
            self.say(self.view.news)
        else:
            self.measured = text

    def scoring(self, task: str, done: int, total: int) -> None:
        """Move on by some scored examples."""
        self._enter("scoring", task)
        self.done = self.base + EVAL_STEP_SHARE * done
        self.view.task_left = None
        self._show(time.monotonic(), task, f"scoring {done}/{total}")

    def scored(self, after: int, task: str, cell: Cell) -> None:
        """Note how many tasks were learned; `row` shows the scores."""
        self.view.learned = after

    def row(self, after: int, scores: Sequence[RowScore]) -> None:
        """Print a row of the matrix, and what changed since each task was last scored."""
        self._print(row_text(after, scores))

    def finish(self) -> None:
        """Close the live view."""
        self.stop()

    def stop(self) -> None:
        """Close the live view and add to the pace, also after an error."""
        if self.running:
            self.running = False
            self.pace.seconds += time.monotonic() - self.started
            self.pace.work += max(self.done - self.at_start, 0.0)
        if self.live is not None:
            self.live.stop()
            self.live = None

    def _show(self, now: float, task: str, doing: str) -> None:
        self.view.current, self.view.doing = task, doing
        self._share()
        moved = self.done - self.at_start
        remaining = max(self.total - self.done, 0.0)
        self.view.run_left = None if moved < MEASURED else (now - self.started) / moved * remaining
        if self.later:
            self.view.all_left = self.pace.seconds_for(
                remaining + self.later, now - self.started, max(moved, 0.0)
            )
        if self.live is None and now - self.spoke >= PLAIN_SECONDS:
            self.spoke = now
            parts = [f"[{100 * self.view.share:3.0f}%] {self.view.method}: {task}, {doing}"]
            parts += [*self.view.numbers(), left(self.view.run_left), self.measured]
            self.say(", ".join(filter(None, parts)))

    def _share(self) -> None:
        self.view.share = min(self.done / self.total, 1.0) if self.total else 1.0


def listener(progress: bool | Progress) -> Progress:
    """Choose the listener: the given one, the terminal for True, or one that shows nothing for False."""
    if isinstance(progress, Progress):
        return progress
    return ConsoleProgress(SafeConsole()) if progress else Progress()
