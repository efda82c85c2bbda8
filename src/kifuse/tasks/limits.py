"""Limits of time and memory for what a template from elsewhere does, in any thread and on any system."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

if sys.platform != "win32":
    import resource

SECONDS = 10.0
"""Longest time that one rendering may take; an ordinary one takes less than a thousandth of it."""

MEMORY = 2**30
"""Bytes that one rendering may take beyond what the process has."""

_SIZE = Path("/proc/self/statm")
_EVERY = 0.1
"""Seconds between two looks at what is being done."""

_measured = [-1.0, 0.0]  # when the process was measured last, and its bytes

T = TypeVar("T")


class TooMuch(ValueError):
    """Something took longer, or more memory, than it may."""


class _Stop(BaseException):
    """Raised in the thread that is stopped; no library takes it for an error of its own."""


@dataclass
class _Job:
    """What is being done: where, for how long and in how much memory it may be."""

    thread: int
    until: float
    seconds: float
    most: float
    memory: int
    why: str = ""

    def found(self) -> str:
        """Which limit is reached; empty: none."""
        if time.monotonic() > self.until:
            return f"it takes longer than {self.seconds:g} seconds"
        if self.most and _peak() > self.most:
            return _too_large(self.memory)
        return ""


class _Watch:
    """A thread that looks at what is being done, and stops it. It ends when there was nothing for a while."""

    def __init__(self) -> None:
        self.one_at_a_time, self.lock = threading.RLock(), threading.Lock()
        self.job: _Job | None = None
        self.idle = 0
        self.thread: threading.Thread | None = None

    @contextmanager
    def over(self, job: _Job) -> Iterator[None]:
        """Look at a job for as long as the block runs.

        Raises:
            TooMuch: It was stopped.
        """
        try:
            self._begin(job)
            try:
                yield
            finally:
                self._end()
        except _Stop:
            self._end()
        if job.why:
            with suppress(_Stop):  # stopped in its very last moment, the stop is still to come
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(job.thread), None)
            raise TooMuch(job.why)

    def _begin(self, job: _Job) -> None:
        with self.lock:
            self.job, self.idle = job, 0
            if self.thread is None or not self.thread.is_alive():
                self.thread = threading.Thread(target=self._look, name="kifuse-limits", daemon=True)
                self.thread.start()

    def _end(self) -> None:
        with self.lock:
            self.job = None

    def _look(self) -> None:
        while True:
            time.sleep(_EVERY)
            with self.lock:
                job = self.job
                self.idle = 0 if job else self.idle + 1
                if self.idle * _EVERY > 5:
                    self.thread = None
                    return
                if job is not None and not job.why:
                    job.why = job.found()
                    if job.why:
                        stop = ctypes.py_object(_Stop)
                        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(job.thread), stop)


_watch = _Watch()


def _after_fork() -> None:
    global _watch
    _watch = _Watch()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def within_limits(work: Callable[[], T], seconds: float = SECONDS, memory: int = MEMORY) -> T:
    """Do something that is stopped when it takes too long or too much memory; one thread at a time.

    It is stopped between two steps of Python. On Linux the system itself refuses the memory, on macOS it is
    measured ten times a second, and on Windows only the time is limited.

    Args:
        work: What to do; it may be begun twice.
        seconds: Longest time.
        memory: Most bytes beyond what the process has.

    Returns:
        What `work` returns.

    Raises:
        TooMuch: A limit is reached.
    """
    # a limit of memory is the whole process's: two threads would take each other's for the old one
    with _watch.one_at_a_time:
        bounded = sys.platform == "linux" and _SIZE.exists()
        most = 0.0 if bounded or sys.platform == "win32" else _peak() + memory
        found: list[T] = []
        with _watch.over(_Job(threading.get_ident(), time.monotonic() + seconds, seconds, most, memory)):
            found.append(_in_space(work, memory) if bounded else work())
        return found[0]


def _peak() -> float:
    """Most bytes of memory that the process ever had."""
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(found if sys.platform == "darwin" else found * 1024)


def _too_large(memory: int) -> str:
    return f"it needs more than {memory / 2**30:g} GiB of memory"


def _measure(now: float) -> None:
    _measured[:] = now, float(_SIZE.read_text().split()[0]) * resource.getpagesize()


def _in_space(work: Callable[[], T], memory: int) -> T:
    now = time.monotonic()
    fresh = now - _measured[0] > 1.0  # it costs more than an ordinary rendering
    if fresh:
        _measure(now)
    try:
        return _below(work, memory)
    except MemoryError:
        pass
    try:
        if not fresh:  # the process itself may have grown
            _measure(now)
            return _below(work, memory)
    except MemoryError:
        pass
    raise TooMuch(_too_large(memory))


def _below(work: Callable[[], T], memory: int) -> T:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = int(_measured[1]) + memory
    resource.setrlimit(
        resource.RLIMIT_AS, (most if soft == resource.RLIM_INFINITY else min(most, soft), hard)
    )
    try:
        return work()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
