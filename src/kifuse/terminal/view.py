"""What the terminal shows of a run, as texts and tables of rich; names of tasks are never read as markup."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.columns import Columns
from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from kifuse.running.progress import RowScore

NEIGHBOURS = 3
"""Tasks shown by name before and after the current one."""
UNCHANGED = 0.05
"""A change below this many points is shown as none."""


@dataclass
class View:
    """The live view: everything that is known about the run at this moment.

    Attributes:
        method: The method's name, with the text before it.
        tasks: Names, in the order of the stream.
        learned: How many tasks were learned.
        current: Name of the task that is trained or scored.
        doing: What happens to that task, e.g. `step 3 of 40`.
        loss: The loss logged last.
        rate: The learning rate logged last.
        share: Part of all work that is done, 0 to 1.
        task_left: Seconds until training on the task is over; None while not known.
        run_left: Seconds until the run is over; None while not known.
        all_left: Seconds until all runs are over; None while not known, or where no other run follows.
        news: What the method did or measured last, in words.
    """

    method: str = ""
    tasks: Sequence[str] = ()
    learned: int = 0
    current: str = ""
    doing: str = ""
    loss: float | None = None
    rate: float | None = None
    share: float = 0.0
    task_left: float | None = None
    run_left: float | None = None
    all_left: float | None = None
    news: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Give the lines of the view, none wider than the terminal."""
        yield Text(self.method, style="bold", no_wrap=True, overflow="ellipsis")
        table = Table.grid(padding=(0, 1))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            ProgressBar(total=1.0, completed=self.share, width=20 if options.max_width > 60 else 8),
            Text(f"{100 * self.share:.0f}%"),
            Text(left(self.run_left)),
        )
        table.add_row("run", bar)
        if self.tasks:
            table.add_row("stream", self.stream(("+", ">", "-") if options.ascii_only else ("✓", "▸", "·")))
        table.add_row("task", Text(f"{self.current}: {self.doing}" if self.current else "getting ready"))
        if self.numbers():
            table.add_row("", Text(", ".join(self.numbers())))
        if self.news:
            table.add_row("method", Text(self.news))
        yield table

    def stream(self, marks: tuple[str, str, str]) -> Columns:
        """The tasks around the current one; the others are counted.

        Args:
            marks: The marks of a learned task, of the current one, and of one to come.
        """
        tasks = list(self.tasks)
        place = tasks.index(self.current) if self.current in tasks else min(self.learned, len(tasks) - 1)
        first, last = max(place - NEIGHBOURS, 0), min(place + NEIGHBOURS + 1, len(tasks))
        shown = [Text(f"{first} before", style="dim")] if first else []
        for i in range(first, last):
            kind = 1 if i == place else 0 if i < self.learned else 2
            shown.append(Text(f"{marks[kind]} {tasks[i]}", style=("green", "bold", "dim")[kind]))
        if last < len(tasks):
            shown.append(Text(f"{len(tasks) - last} more", style="dim"))
        return Columns(shown, padding=(0, 2))

    def numbers(self) -> list[str]:
        """Loss, learning rate and the times left for the task and for all runs, if they are known."""
        found = []
        if self.loss is not None:
            found.append(f"loss {self.loss:.2f}")
        if self.rate is not None:
            found.append(f"rate {self.rate:.1e}")
        if self.task_left is not None:
            found.append(f"{clock(self.task_left)} left for the task")
        if self.all_left is not None:
            found.append(f"about {clock(self.all_left)} left for all runs")
        return found


def clock(seconds: float) -> str:
    """Minutes and seconds, with hours from the first hour on."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes_rest = divmod(minutes, 60)
    return f"{hours}:{minutes_rest:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def left(seconds: float | None) -> str:
    """The time left for the run, in words."""
    return "time left: not known yet" if seconds is None else f"about {clock(seconds)} left"


def row_text(after: int, row: Sequence[RowScore]) -> Text:
    """A row of the score matrix, with what changed since each task was last scored.

    Args:
        after: Number of tasks learned.
        row: The scores, that of the task just learned first.
    """
    text = Text()
    text.append(f"after task {after}: " if after else "before any training: ", style="bold")
    for place, score in enumerate(row):
        text.append(", " if place else "")
        text.append(f"{score.task} ")
        text.append(f"{score.score:.1f}", style="bold")
        if score.change is not None:
            text.append(f" ({score.change:+.1f})", style=_colour(score.change))
        if after and not score.learned:
            text.append(" before its training", style="dim")
    return text


def _colour(change: float) -> str:
    if abs(change) < UNCHANGED:
        return "dim"
    return "green" if change > 0 else "red"
