"""A child process that computes what may take for ever, and is ended at a limit of time, memory or text."""

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
"""Longest time that one answer may take; an ordinary one takes less than a thousandth of it."""

MEMORY = 2**30
"""Bytes that the process may take beyond what it has when it begins."""

FREE_TEXT, TIMES = 2**20, 100
"""An answer may be this many bytes long, and this many times as long as what was asked."""

_IDLE = 5.0
"""Seconds after which it ends when nothing is asked; the next question starts it anew."""
_BREAK = 0.1
"""Seconds between two looks at its memory, where the system does not limit that itself."""
_SIZE = Path("/proc/self/statm")
_BOUNDED = sys.platform == "linux" and _SIZE.exists()
"""Whether the system limits the memory itself."""
_GONE = b""
_TOO_LARGE = f"it needs more than {MEMORY / 2**30:g} GiB of memory"
_PARALLEL = "TOKENIZERS_PARALLELISM"


class TooMuch(ValueError):
    """Something took longer, more memory, or more text than it may."""


class LimitedProcess:
    """Computes a function in a child process, which ends with it where it reaches a limit.

    A single step of Python cannot be stopped from within its process, so a thread or a signal would not do.
    The child is a fork: it has what the function needs, starts in no time, and ends when it was idle for a
    while, so that it does not hold on to memory that its parent has long replaced.

    Args:
        work: What to compute. It gets one value of JSON and returns one; what it prints is lost.
    """

    def __init__(self, work: Callable[[Any], Any]) -> None:
        self._work = work
        self._child: _Child | None = None
        self._one_at_a_time = threading.Lock()

    def ask(self, value: Any) -> Any:
        """Compute the function of a value.

        Raises:
            TooMuch: It takes longer than `SECONDS`, more than `MEMORY`, or returns more than it may.
            ValueError: It raised an error, whose text this has.
        """
        question = json.dumps(value).encode()
        with self._one_at_a_time:
            answer = _GONE
            while answer == _GONE:  # it had ended, for nothing was asked
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
    """The parent's end of a child process."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        self.owner = os.getpid()
        self._line, far = Pipe()
        self._number = _fork()
        if self._number == 0:
            try:
                _serve(far, work)
            finally:  # it never goes on with what the parent was doing
                os._exit(0)
        far.close()
        self._most = 0 if _BOUNDED else _memory_of(self._number) + MEMORY

    def ask(self, question: bytes) -> bytes:
        """What it answers; empty where it had ended before it was asked."""
        began = time.monotonic()
        try:
            with suppress(OSError):  # its last word is read below
                self._line.send_bytes(question)
            while not _BOUNDED and not self._line.poll(_BREAK):
                if _memory_of(self._number) > self._most:
                    raise TooMuch(_TOO_LARGE)
            return self._line.recv_bytes()
        except (EOFError, OSError) as error:
            if time.monotonic() - began >= SECONDS:
                raise TooMuch(f"it takes longer than {SECONDS:g} seconds") from error
            raise TooMuch("the process in which it is computed was ended") from error

    def end(self) -> None:
        """End it at once, whatever it does."""
        self._line.close()
        with suppress(ProcessLookupError):
            os.kill(self._number, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(self._number, 0)


def _fork() -> int:
    """Fork without the words of others about it: the child uses no thread, and nothing that a thread held."""
    configured = os.environ.get(_PARALLEL)
    os.environ[_PARALLEL] = configured or "true"  # else tokenizers says that it changes it
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python's, of threads
            return os.fork()
    finally:
        if configured is None:
            del os.environ[_PARALLEL]


def _serve(line: Connection, work: Callable[[Any], Any]) -> None:
    """Answer until nothing is asked any more."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # the parent ends it
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    # the system itself ends it at the limit of time, within a step too, and if the parent is gone
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    # locks of the parent's files are its own
    for descriptor in map(int, os.listdir("/dev/fd")):
        if descriptor != line.fileno():
            with suppress(OSError):
                os.close(descriptor)
    for _ in range(3):
        os.open(os.devnull, os.O_RDWR)
    gc.freeze()  # what the parent has is not copied by looking at it
    if _BOUNDED:
        most = int(_SIZE.read_text().split()[0]) * resource.getpagesize() + MEMORY
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    while line.poll(_IDLE):
        question = line.recv_bytes()  # ends the process, too, where the parent is gone
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
    """Bytes of memory that a process has."""
    said = subprocess.run(  # noqa: S603 - a program of the system, a number of ours
        ["/bin/ps", "-o", "rss=", "-p", str(number)], capture_output=True, text=True, check=False
    ).stdout.strip()
    return int(said) * 1024 if said.isdigit() else 0
