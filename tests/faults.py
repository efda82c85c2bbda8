"""Make file operations fail, one after the other: something happens at the n-th operation."""

from __future__ import annotations

import builtins
import contextlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

OPERATIONS = ("open", "replace", "rename", "mkdir", "unlink", "remove", "rmdir", "fsync")
"""Functions of `os` that change files on disk, or may do so."""


class Killed(BaseException):
    """Stands for the end of the process."""


class Counter:
    """Counts file operations, and acts at one of them.

    Args:
        number: The operation at which to act, from 1; 0 for none.
        action: What to do there, before the operation; it may raise an error.
    """

    def __init__(self, number: int, action: Callable[[], None]) -> None:
        self.number, self.action, self.seen = number, action, 0
        self._process = os.getpid()

    def see(self) -> None:
        """Count an operation that is about to happen, unless it happens in a fork."""
        self.seen += os.getpid() == self._process
        if self.seen == self.number and os.getpid() == self._process:
            self.action()


@contextlib.contextmanager
def failing_at(number: int, action: Callable[[], None]) -> Iterator[Counter]:
    """Act at the n-th file operation of the block: one of `OPERATIONS`, or opening a file for writing."""
    counter = Counter(number, action)
    before = {name: getattr(os, name) for name in OPERATIONS}
    plain_open = builtins.open

    def watched(original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            counter.see()
            return original(*args, **kwargs)

        return call

    def opening(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if set(mode) & set("wax+"):
            counter.see()
        return plain_open(file, mode, *args, **kwargs)

    try:
        for name, original in before.items():
            setattr(os, name, watched(original))
        builtins.open = io.open = opening  # type: ignore[assignment]
        yield counter
    finally:
        builtins.open = io.open = plain_open
        for name, original in before.items():
            setattr(os, name, original)


def killed() -> None:
    """End the block as a kill would end the process."""
    raise Killed


def read_only() -> None:
    """Raise the error of a file system that has become read-only."""
    raise OSError(30, "Read-only file system")


def contents(folder: Path) -> dict[str, bytes]:
    """Read all files below a folder that are not a log, a lock or a page, by their path."""
    passing = {"log.txt", ".lock", ".lock.owner", "report.html"}
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in passing)
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}
