"""Limits of time and memory for what a template from elsewhere does."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TypeVar

if sys.platform == "linux":
    import resource

SECONDS = 10.0
"""Longest time that one rendering may take; an ordinary one takes less than a thousandth of it."""

MEMORY = 2**30
"""Bytes that one rendering may take beyond what the process has."""

_SIZE = Path("/proc/self/statm")
_measured = [-1.0, 0.0]  # when the process was measured last, and its bytes

T = TypeVar("T")


class TooMuch(ValueError):
    """Something took longer, or more memory, than it may."""


def within_limits(work: Callable[[], T], seconds: float = SECONDS, memory: int = MEMORY) -> T:
    """Do something that is stopped when it takes too long or too much memory.

    Time is limited in the main thread on Linux and macOS, memory on Linux; elsewhere there is no limit.

    Args:
        work: What to do; it may be begun twice.
        seconds: Longest time.
        memory: Most bytes beyond what the process has.

    Returns:
        What `work` returns.

    Raises:
        TooMuch: A limit is reached.
    """
    if sys.platform != "linux" or not _SIZE.exists():
        return _in_time(work, seconds)
    now = time.monotonic()
    fresh = now - _measured[0] > 1.0  # it costs more than an ordinary rendering
    if fresh:
        _measure(now)
    try:
        return _in_space(lambda: _in_time(work, seconds), memory)
    except MemoryError:
        pass
    try:
        if not fresh:  # the process itself may have grown
            _measure(now)
            return _in_space(lambda: _in_time(work, seconds), memory)
    except MemoryError:
        pass
    raise TooMuch(f"it needs more than {memory / 2**30:g} GiB of memory")


def _in_time(work: Callable[[], T], seconds: float) -> T:
    alarm = getattr(signal, "SIGALRM", None)
    if alarm is None or threading.current_thread() is not threading.main_thread():
        return work()

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooMuch(f"it takes longer than {seconds:g} seconds")

    before, begun = signal.signal(alarm, stop), time.monotonic()
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return work()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(alarm, before if before is not None else signal.SIG_DFL)
        if left:  # an alarm that someone else has set goes on
            signal.setitimer(signal.ITIMER_REAL, max(1e-6, left - (time.monotonic() - begun)), interval)


def _measure(now: float) -> None:
    _measured[:] = now, float(_SIZE.read_text().split()[0]) * resource.getpagesize()


def _in_space(work: Callable[[], T], memory: int) -> T:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = int(_measured[1]) + memory
    resource.setrlimit(
        resource.RLIMIT_AS, (most if soft == resource.RLIM_INFINITY else min(most, soft), hard)
    )
    try:
        return work()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
