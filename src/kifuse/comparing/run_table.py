"""A live table of all runs of a grid, read from the folders of the runs."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from kifuse.comparing.compare_section import LOG
from kifuse.errors import KifuseError
from kifuse.record.run_record import FILE, RunRecord
from kifuse.reporting.wording import shorten

_TAIL = 2000
"""Bytes at the end of a log that are searched for its last line."""

WAITING, SENT, RUNNING, FINISHED, FAILED = "waiting", "sent", "running", "finished", "failed"
_ORDER = (FAILED, RUNNING, SENT, WAITING, FINISHED)
"""The order of the rows: the important ones come first, as a terminal may not have room for all."""


@dataclass
class JobState:
    """The state of a run and its job.

    Attributes:
        title: Title of the run.
        folder: Folder of the run.
        state: `WAITING`, `SENT`, `RUNNING`, `FINISHED` or `FAILED`.
        learned: Number of tasks learned.
        tasks: Number of all tasks; 0 until the run has a record.
        said: The last line of the log, or the reason for the failure.
        tries: How often the job was sent.
        lost: Why the job was sent again.
    """

    title: str
    folder: Path
    state: str = WAITING
    learned: int = 0
    tasks: int = 0
    said: str = ""
    tries: int = 0
    lost: str = ""
    _seen: tuple[float, ...] = (0.0, 0.0)

    def __post_init__(self) -> None:
        self.look()

    def send(self, number: int) -> None:
        """Note that the job was sent for the given time, counted from 1."""
        self.look()  # so that changes by an earlier job do not count as changes by this one
        self.tries, self.state = number, SENT

    def lose(self, why: str) -> None:
        """Note that the job ended without a result."""
        self.lost = why

    def settle(self, failure: str | None) -> None:
        """Note that the run is finished or failed."""
        self.look()
        self.state = FINISHED if failure is None else FAILED
        self.said = failure or self.said

    def look(self) -> None:
        """Read the record and the log again if they changed."""
        seen = tuple(_changed(self.folder / name) for name in (FILE, LOG))
        if seen[0] != self._seen[0]:
            with contextlib.suppress(KifuseError):
                record = RunRecord.load(self.folder)
                self.tasks = len(record.tasks)
                self.learned = sum(task.train_steps is not None for task in record.tasks)
        if seen[1] != self._seen[1]:
            self.said = _last_line(self.folder / LOG)
            if self.state == SENT and self._seen[1]:
                self.state = RUNNING
        self._seen = seen


class RunTable:
    """Shows the runs: a table that is updated in a terminal, else one line for each change.

    Args:
        console: The console to print to.
        runs: The states of the runs.
    """

    def __init__(self, console: Console, runs: Sequence[JobState]) -> None:
        self._console, self._runs = console, runs
        self._live: Live | None = None
        self._told: dict[int, tuple[str, int, int]] = {}

    @contextlib.contextmanager
    def live(self) -> Iterator[None]:
        """Show the table while the block runs."""
        if not self._console.is_terminal or self._console.is_dumb_terminal:
            yield
            return
        with Live(self._table(), console=self._console, auto_refresh=False) as self._live:
            yield
            self.look()

    def look(self) -> None:
        """Read the state of all runs, and show what has changed."""
        for run in self._runs:
            if run.state in (SENT, RUNNING):
                run.look()
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
            return
        for run in self._runs:
            now = (run.state, run.learned, run.tries)
            before = self._told.get(id(run), (WAITING, 0, 1))
            if run.state != WAITING and before != now:
                again = f" (sent again: {run.lost})" if run.tries > before[2] else ""
                learned = f", {run.learned} of {run.tasks} tasks learned" if run.tasks else ""
                self._console.print(
                    f"{run.title}: {run.state}{learned}{again}",
                    soft_wrap=True,
                    highlight=False,
                    markup=False,
                )
                self._told[id(run)] = now

    def _table(self) -> Table:
        counts = Counter(run.state for run in self._runs)
        table = Table(
            *("run", "state", "tasks", "last line of its log"),
            box=box.SIMPLE_HEAD,
            title=", ".join(f"{counts[state]} {state}" for state in _ORDER if counts[state]),
            title_justify="left",
        )
        for run in sorted(self._runs, key=lambda run: _ORDER.index(run.state)):
            again = f", try {run.tries}" if run.tries > 1 else ""
            learned = f"{run.learned}/{run.tasks}" if run.tasks else ""
            rows = (run.title, run.state + again, learned, shorten(run.said, 80))
            table.add_row(*(Text(each) for each in rows))
        return table


def _changed(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def _last_line(file: Path) -> str:
    """Return the last line of a log without its time."""
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - _TAIL))
            lines = stream.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return lines[-1].partition("  ")[2].strip() if lines else ""
