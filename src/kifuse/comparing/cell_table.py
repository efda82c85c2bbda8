"""One live table of all cells of a grid, read from their folders, wherever they run."""

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
"""Bytes at the end of a log in which its last line is looked for."""

WAITING, SENT, RUNNING, FINISHED, FAILED = "waiting", "sent", "running", "finished", "failed"
_ORDER = (FAILED, RUNNING, SENT, WAITING, FINISHED)
"""The rows that matter most come first: a terminal may be too low for all."""


@dataclass
class Shown:
    """What is known of a cell.

    Attributes:
        title: Of the run.
        folder: The run's.
        state: One of those above.
        learned: Tasks that it has learned.
        tasks: Tasks in all; 0 while its record is not there.
        said: The last line of its log, or why it failed.
        tries: How often its job was sent.
        lost: Why it was sent again.
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
        """Note that its job was sent, and how often by now."""
        self.look()  # what an earlier job has written is no sign of this one
        self.tries, self.state = number, SENT

    def lose(self, why: str) -> None:
        """Its job has ended without a result."""
        self.lost = why

    def settle(self, failure: str | None) -> None:
        """It is done."""
        self.look()
        self.state = FINISHED if failure is None else FAILED
        self.said = failure or self.said

    def look(self) -> None:
        """Read anew what has changed in its folder."""
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


class CellTable:
    """Shows cells: all of them anew in a terminal, a line for each change where nobody watches.

    Args:
        console: Where to.
        cells: The cells.
    """

    def __init__(self, console: Console, cells: Sequence[Shown]) -> None:
        self._console, self._cells = console, cells
        self._live: Live | None = None
        self._told: dict[int, tuple[str, int, int]] = {}

    @contextlib.contextmanager
    def live(self) -> Iterator[None]:
        """Show the table for as long as the block runs."""
        if not self._console.is_terminal or self._console.is_dumb_terminal:
            yield
            return
        with Live(self._table(), console=self._console, auto_refresh=False) as self._live:
            yield
            self.look()

    def look(self) -> None:
        """Look at all cells, and show what has changed."""
        for cell in self._cells:
            if cell.state in (SENT, RUNNING):
                cell.look()
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
            return
        for cell in self._cells:
            now = (cell.state, cell.learned, cell.tries)
            before = self._told.get(id(cell), (WAITING, 0, 1))
            if cell.state != WAITING and before != now:
                again = f" (sent again: {cell.lost})" if cell.tries > before[2] else ""
                learned = f", {cell.learned} of {cell.tasks} tasks learned" if cell.tasks else ""
                self._console.print(
                    f"{cell.title}: {cell.state}{learned}{again}",
                    soft_wrap=True,
                    highlight=False,
                    markup=False,
                )
                self._told[id(cell)] = now

    def _table(self) -> Table:
        counts = Counter(cell.state for cell in self._cells)
        table = Table(
            *("run", "state", "tasks", "last line of its log"),
            box=box.SIMPLE_HEAD,
            title=", ".join(f"{counts[state]} {state}" for state in _ORDER if counts[state]),
            title_justify="left",
        )
        for cell in sorted(self._cells, key=lambda cell: _ORDER.index(cell.state)):
            again = f", try {cell.tries}" if cell.tries > 1 else ""
            learned = f"{cell.learned}/{cell.tasks}" if cell.tasks else ""
            rows = (cell.title, cell.state + again, learned, shorten(cell.said, 80))
            table.add_row(*(Text(each) for each in rows))
        return table


def _changed(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def _last_line(file: Path) -> str:
    """The last line of a log, without its time."""
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - _TAIL))
            lines = stream.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return lines[-1].partition("  ")[2].strip() if lines else ""
