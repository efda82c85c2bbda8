"""Runs a function that may never finish in a child process, with limits of time, memory and text."""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

SECONDS = 10.0
"""Longest time in seconds for one answer; an ordinary answer takes less than a thousandth of it."""

MEMORY = 2**30
"""Bytes of memory that the process may take in addition to what it has at its start."""

FREE_TEXT, TIMES = 2**20, 100
"""Most bytes of an answer: `FREE_TEXT`, plus `TIMES` times the length of the question."""

_IDLE = 5.0
"""Seconds without a question after which the process ends; the next question starts a new process."""
_BREAK = 0.1
"""Seconds between two checks of its memory, on systems that cannot limit memory themselves."""
_SIZE = Path("/proc/self/statm")
_BOUNDED = sys.platform == "linux" and _SIZE.exists()
"""Whether the system itself limits the memory."""
_GONE = b""
_TOO_LARGE = f"it needs more than {MEMORY / 2**30:g} GiB of memory"
_PARALLEL = "TOKENIZERS_PARALLELISM"


class TooMuch(ValueError):
    """A computation took more time, memory or text than it may."""


class LimitedProcess:
    """Computes a function in a child process, and ends the process when it reaches a limit.

    A single step of Python cannot be stopped from within its process, so a thread or a signal would not help.
    The child is a fork: it already has everything that the function needs, and it starts at once. It ends
    after some idle time, so that it does not hold memory that its parent has long replaced.

    Args:
        work: The function. It takes and returns one JSON value; anything it prints is lost.
    """

    def __init__(self, work: Callable[[Any], Any]) -> None:
        self._work = work
        self._child: _Child | None = None
        self._one_at_a_time = threading.Lock()

    def ask(self, value: Any) -> Any:
        """Compute the function for a value.

        Raises:
            TooMuch: The function takes longer than `SECONDS`, takes more than `MEMORY`, or returns too long a
                text.
            ValueError: The function raised an error; this error has its text.
        """
        question = json.dumps(value).encode()
        with self._one_at_a_time:
            answer = _GONE
            while answer == _GONE:  # the child had ended because it was idle: start another
                if self._child is None or self._child.owner != os.getpid():
                    self._child = _Child(self._work)
                child, self._child = self._child, None
                try:
                    answer = child.ask(question)
                    if answer != _GONE:
                        self._child = child
                finally:
                    if self._child is None:
                        child.end()
        kind, found = json.loads(answer)
        if kind == "error":
            raise ValueError(found)
        if kind == "too much":
            raise TooMuch(found)
        return found


class _Child:
    """The parent's side of a child process."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        self.owner = os.getpid()
        self._line, far = Pipe()
        self._number = _fork()
        if self._number == 0:
            try:
                _serve(far, work)
            finally:  # the child must never continue with what the parent was doing
                os._exit(0)
        far.close()
        self._most = 0 if _BOUNDED else _memory_of(self._number) + MEMORY

    def ask(self, question: bytes) -> bytes:
        """Return the child's answer; empty if it had already ended before the question."""
        began = time.monotonic()
        try:
            with suppress(OSError):  # the child's last message is read below
                self._line.send_bytes(question)
            while not _BOUNDED and not self._line.poll(_BREAK):
                if _memory_of(self._number) > self._most:
                    raise TooMuch(_TOO_LARGE)
            return self._line.recv_bytes()
        except (EOFError, OSError) as error:
            if time.monotonic() - began >= SECONDS:
                raise TooMuch(f"it takes longer than {SECONDS:g} seconds") from error
            raise TooMuch("the process that computes it was ended") from error

    def end(self) -> None:
        """End the child at once, whatever it is doing."""
        self._line.close()
        with suppress(ProcessLookupError):
            os.kill(self._number, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(self._number, 0)


def _fork() -> int:
    """Fork without the warnings of libraries: the child uses no thread, and nothing that a thread held."""
    configured = os.environ.get(_PARALLEL)
    os.environ[_PARALLEL] = configured or "true"  # otherwise tokenizers prints that it changes this
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python warns about threads
            return os.fork()
    finally:
        if configured is None:
            del os.environ[_PARALLEL]


def _serve(line: Connection, work: Callable[[Any], Any]) -> None:
    """Answer questions until no more come."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # the parent ends this process
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    # at the time limit the system itself ends the process, even within a step, and if the parent is gone
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    # close the parent's files, because the locks on them belong to the parent
    for descriptor in map(int, os.listdir("/dev/fd")):
        if descriptor != line.fileno():
            with suppress(OSError):
                os.close(descriptor)
    for _ in range(3):
        os.open(os.devnull, os.O_RDWR)
    gc.freeze()  # collecting garbage must not copy the parent's memory
    if _BOUNDED:
        most = int(_SIZE.read_text().split()[0]) * resource.getpagesize() + MEMORY
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    while line.poll(_IDLE):
        question = line.recv_bytes()  # this also ends the process if the parent is gone
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        line.send_bytes(_answer(question, work))
        signal.setitimer(signal.ITIMER_REAL, 0)
    line.send_bytes(_GONE)


def _answer(question: bytes, work: Callable[[Any], Any]) -> bytes:
    most = FREE_TEXT + TIMES * len(question)
    try:
        answer = json.dumps(["", work(json.loads(question))]).encode()
        if len(answer) <= most:
            return answer
        found = ["too much", f"it makes more than {most} characters of {len(question)}"]
    except MemoryError:
        found = ["too much", _TOO_LARGE]
    except Exception as error:
        found = ["error", str(error)[:FREE_TEXT] or type(error).__name__]
    return json.dumps(found).encode()


def _memory_of(number: int) -> int:
    """Bytes of memory that a process uses."""
    said = subprocess.run(  # noqa: S603 - a system program, called with a number of our own
        ["/bin/ps", "-o", "rss=", "-p", str(number)], capture_output=True, text=True, check=False
    ).stdout.strip()
    return int(said) * 1024 if said.isdigit() else 0
