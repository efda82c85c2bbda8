"""The log of a run, `log.txt` in its folder: what the run says and what its steps measure, one line each.

Plain text without colours, each line with its time (UTC); a run that goes on appends to it. Each line is
handed to the operating system at once, so that a killed run's log ends where the run did.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import math
import os
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kifuse.answering.evaluator import Cell
from kifuse.errors import KifuseError
from kifuse.running.progress import Plan, Progress, RowScore

FILE = "log.txt"

LIBRARIES = ("kifuse", "transformers", "accelerate", "peft")
"""Libraries whose warnings go into the log too."""

_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[^\S\n ]|[\x00-\x09\x0b-\x1f\x7f-\x9f]")


class RunLog(Progress):
    """Writes what a run reports into the log, and passes it on to another listener.

    Outside of `writing()` it only passes on.

    Args:
        folder: The run's folder.
        inner: The other listener.
        writes: Whether this process writes files.
    """

    def __init__(self, folder: Path, inner: Progress, *, writes: bool = True) -> None:
        self.file = folder / FILE
        self.inner = inner
        self.writes = writes
        self._descriptor: int | None = None
        self._told = False

    @contextlib.contextmanager
    def writing(self, *opening: str) -> Iterator[None]:
        """Keep the log while the block runs; if the block fails, the last line says how.

        If the log cannot be written, this is said once, and the run goes on.

        Args:
            opening: First lines.
        """
        self._open()
        handler = _Warnings(self)
        loggers = [logging.getLogger(name) for name in LIBRARIES] if self._descriptor is not None else []
        for logger in loggers:
            logger.addHandler(handler)
        try:
            for line in opening:
                self.write(line)
            yield
        except KeyboardInterrupt:
            self.write("stopped by the user")
            raise
        except KifuseError as error:
            self.write(f"failed: {error}")
            raise
        except BaseException as error:
            # this error was not expected, so the log shows where it came from
            self.write("failed: " + "".join(traceback.format_exception(error)).rstrip())
            raise
        finally:
            for logger in loggers:
                logger.removeHandler(handler)
            self._close()
            self.inner.stop()

    def write(self, text: str) -> None:
        """Append a line; further lines of the text are indented."""
        if self._descriptor is None:
            return
        time = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        lines = plain(text).replace("\n", "\n    ")
        try:
            # one unbuffered write: a signal's handler may say something in the middle of another line
            os.write(self._descriptor, f"{time}  {lines}\n".encode("utf-8", "replace"))
        except OSError as error:
            self._give_up(error)

    def _open(self) -> None:
        if not self.writes:
            return
        # does not wait if somebody has put a pipe there
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NONBLOCK", 0)
        try:
            self._descriptor = os.open(self.file, flags, 0o666)
        except OSError as error:
            self._give_up(error)

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _give_up(self, error: OSError) -> None:
        with contextlib.suppress(OSError):
            self._close()
        if not self._told:
            self._told = True
            self.inner.say(
                f"{self.file}: cannot be written: {error.strerror or error}; the run continues without a log"
            )

    def say(self, text: str) -> None:
        """Write the line."""
        self.write(text)
        self.inner.say(text)

    def stream(self, tasks: Sequence[str], learned: int) -> None:
        """Write the stream."""
        self.write(f"tasks: {', '.join(tasks)}; {learned} learned")
        self.inner.stream(tasks, learned)

    def begin(self, method: str, plan: Plan, done: Plan) -> None:
        """Write how much there is to do."""
        self.write(f"{method}: {plan.steps - done.steps} steps, {plan.scored - done.scored} answers to score")
        self.inner.begin(method, plan, done)

    def training(self, task: str, work: int) -> None:
        """Write that training on a task begins."""
        self.write(f"{task}: training, {work} forward and backward passes")
        self.inner.training(task, work)

    def passes(self, done: int) -> None:
        """Pass it on."""
        self.inner.passes(done)

    def step(self, task: str, step: int, steps: int, loss: float | None) -> None:
        """Pass it on; `logged` has the numbers."""
        self.inner.step(task, step, steps, loss)

    def logged(self, task: str, step: int, values: Mapping[str, Any]) -> None:
        """Write the step's numbers."""
        self.write(f"{task}, step {step}: {named_numbers(values)}")
        self.inner.logged(task, step, values)

    def event(self, task: str, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Write what happened."""
        self.write(f"{task}, step {step}: {kind}: {named_numbers(values)}")
        self.inner.event(task, kind, step, values)

    def method_says(self, task: str, step: int, text: str, once: bool) -> None:
        """Pass it on; `logged` and `event` have the numbers."""
        self.inner.method_says(task, step, text, once)

    def scoring(self, task: str, done: int, total: int) -> None:
        """Pass it on."""
        self.inner.scoring(task, done, total)

    def scored(self, after: int, task: str, cell: Cell) -> None:
        """Write the score."""
        moment = f"after task {after}" if after else "before any training"
        valid = "" if cell.valid is None else f", {cell.valid:.1f}% of the outputs are labels"
        known = "" if cell.identified is None else f", the task was recognised in {cell.identified:.1f}%"
        self.write(
            f"{moment}: {task} {cell.score:.2f}{valid}{known}; "
            f"{cell.n} examples in {cell.seconds:.1f} seconds"
        )
        self.inner.scored(after, task, cell)

    def row(self, after: int, scores: Sequence[RowScore]) -> None:
        """Write what changed."""
        changed = [f"{s.task} {s.change:+.1f}" for s in scores if s.change is not None]
        if changed:
            self.write(f"since last scored: {', '.join(changed)}")
        self.inner.row(after, scores)

    def saved(self, folder: Path) -> str | None:
        """Pass it on."""
        return self.inner.saved(folder)

    def finish(self) -> None:
        """Write that the run is complete."""
        self.write("finished")
        self.inner.finish()

    def stop(self) -> None:
        """Pass it on."""
        self.inner.stop()


class _Warnings(logging.Handler):
    """Writes libraries' warnings into a run's log; they are still shown wherever they were shown before."""

    def __init__(self, log: RunLog) -> None:
        super().__init__(logging.WARNING)
        self.log = log

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.log.write(f"{record.levelname.lower()} ({record.name}): {record.getMessage()}")
        except Exception:  # as every handler does: a message that cannot be formatted stops nothing
            self.handleError(record)
        # Python itself shows a warning that has no handler; this handler must not count as one
        if logging.lastResort is not None and not self._others(record.name):
            logging.lastResort.handle(record)

    def _others(self, name: str) -> bool:
        logger: logging.Logger | None = logging.getLogger(name)
        while logger is not None:
            if any(handler is not self for handler in logger.handlers):
                return True
            logger = logger.parent if logger.propagate else None
        return False


def plain(text: str) -> str:
    """Replace control characters, except line breaks, by spaces: nothing moves a terminal's cursor then."""
    return _CONTROL.sub(" ", text)


def named_numbers(values: Mapping[str, Any]) -> str:
    """Names and values as one text; a long list is given by its length and last value."""
    return ", ".join(f"{name} {_short(value)}" for name, value in values.items())


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else str(value)
    if isinstance(value, (list, tuple)) and len(value) > 8:
        return f"[{len(value)} values, last {value[-1]}]"
    return str(value)
