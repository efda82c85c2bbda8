"""A run of a grid in the terminal: as any run, with the time left for the whole grid beside its own."""

from __future__ import annotations

import time
from dataclasses import dataclass

from rich.console import Console

from kifuse.terminal_progress import MEASURED, ConsoleProgress
from kifuse.terminal_view import View, clock
from kifuse.training.progress import Plan


@dataclass
class Pace:
    """How long the work of the runs so far took, in this process.

    Attributes:
        seconds: Wall time.
        work: In passes, see `Plan.work`.
    """

    seconds: float = 0.0
    work: float = 0.0

    def seconds_for(self, work: float, seconds: float, done: float) -> float | None:
        """How long some work will take.

        Args:
            work: To be done.
            seconds: Time of the current run so far.
            done: Work of the current run so far.

        Returns:
            Seconds; None while too little is measured.
        """
        measured = self.work + done
        return None if measured < MEASURED else (self.seconds + seconds) / measured * work


@dataclass
class GridView(View):
    """The live view of a run, with the time until all runs are over.

    Attributes:
        all_left: Seconds; None while not known, or where this is the last run.
    """

    all_left: float | None = None

    def numbers(self) -> list[str]:
        """The numbers of the run, then those of the grid."""
        more = [] if self.all_left is None else [f"about {clock(self.all_left)} left for all runs"]
        return [*super().numbers(), *more]


class CellProgress(ConsoleProgress):
    """Shows a run of a grid.

    Args:
        console: Where to.
        place: Which run of how many: `3/12`.
        title: Of the run, with order and seed.
        label: Of its row.
        later: Work of the runs that follow.
        pace: Of the runs before; this run's own is added to it.
    """

    def __init__(
        self, console: Console, *, place: str, title: str, label: str, later: float, pace: Pace
    ) -> None:
        super().__init__(console)
        self.view: GridView = GridView()
        self.title, self.short = f"{place} {title}", f"{place} {label}"
        self.later, self.pace = later, pace
        self.running = False

    def begin(self, method: str, plan: Plan, done: Plan) -> None:
        """Open the live view."""
        super().begin(self.title, plan, done)
        self.view.method = self.short
        self.running = True

    def stop(self) -> None:
        """Close the live view, and keep the pace; also after an error."""
        if self.running:
            self.running = False
            self.pace.seconds += time.monotonic() - self.started
            self.pace.work += max(self.done - self.at_start, 0.0)
        super().stop()

    def _show(self, now: float, task: str, doing: str) -> None:
        if self.later:
            left = max(self.total - self.done, 0.0) + self.later
            done = max(self.done - self.at_start, 0.0)
            self.view.all_left = self.pace.seconds_for(left, now - self.started, done)
        super()._show(now, task, doing)
