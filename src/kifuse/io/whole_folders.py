"""Folders written whole or not at all, and files checked against the hash they were written with."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from kifuse.errors import RunError
from kifuse.io.storage import sha256_file

_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp\Z")


def replace_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Fill a folder that appears under its name only when it is complete and on disk.

    Args:
        folder: Where; one of that name is replaced, and stays until the new one is complete.
        fill: Writes the files into the folder it is given.

    Raises:
        OSError: The folder cannot be written.
    """
    partial, old = (folder.with_name(f".{folder.name}.{mark}") for mark in ("partial", "old"))
    for left in (partial, old):
        if left.exists():
            shutil.rmtree(left)
    partial.mkdir(parents=True)
    fill(partial)
    for path in (each for each in partial.rglob("*") if each.is_file()):
        with path.open("rb") as handle:
            os.fsync(handle.fileno())
    if folder.is_dir():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    _sync(folder.parent)


def remove_temporaries(folder: Path, parts: Iterable[str] = ()) -> None:
    """Remove what a kill left of a single write that never took its place.

    Call it while the folder is held.

    Args:
        folder: A run's, a learner's or a comparison's.
        parts: Names of folders in it whose own files, and those of the folders in them, are looked through.
    """
    inside = [folder / part for part in parts]
    for place in [folder, *inside, *(each for part in inside for each in part.glob("*"))]:
        for path in place.iterdir() if place.is_dir() else ():
            if path.is_file() and _TEMPORARY.match(path.name):
                path.unlink(missing_ok=True)


def check_file(path: Path, sha256: object, list_name: str, *, size: object = None) -> None:
    """Make sure that a file is as it was written.

    Args:
        path: The file.
        sha256: The hash it was written with.
        list_name: The file that lists it, for the message.
        size: Its bytes, which are looked at first; None: not known.

    Raises:
        RunError: It is missing, or of another size or content.
    """
    remedy = "restore it from a copy."
    if not path.is_file():
        raise RunError(f"{path}: is missing, though {list_name} lists it; {remedy}")
    found = path.stat().st_size
    if size is not None and found != size:
        raise RunError(f"{path}: holds {found} bytes, expected {size}; the file is damaged, {remedy}")
    if sha256_file(path) != sha256:
        raise RunError(
            f"{path}: its content is not what was written (SHA-256 differs); the file is damaged, {remedy}"
        )


def _sync(folder: Path) -> None:
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
