"""One process at a time writes to a run's folder."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from kifuse.errors import RunError


class FolderInUseError(RunError):
    """Another process writes to a folder."""


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a run's folder for as long as the block runs.

    The operating system gives the lock back when the process ends, however it ends: a crash or a reboot
    blocks no later process. The lock file itself stays; that it exists means nothing.

    Args:
        folder: The run's folder; it is made if it does not exist.

    Raises:
        FolderInUseError: Another process holds it.
        RunError: The folder cannot be written to.
    """
    lock, owner = folder / ".lock", folder / ".lock.owner"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = FileLock(lock)
        held.acquire(timeout=0)
    except Timeout as error:
        raise FolderInUseError(
            f"output: {folder} is being written to by another process ({_owner(owner)}); wait until it has "
            "ended, or name another folder."
        ) from error
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunError(f"output: {folder} cannot be written to: {reason}; name another folder.") from error
    try:
        with contextlib.suppress(OSError):  # the file only tells others who holds the folder
            owner.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        with contextlib.suppress(OSError):
            owner.unlink()
        held.release()


def _owner(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")[:200].strip() or "unknown"
    except OSError:
        return "unknown"
