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
        folder: The folder to write. An existing one is replaced, and stays until the new one is complete.
        fill: A function that writes the files into the folder that it is given.

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
    """Remove the temporary files that a killed process left behind.

    Call it while this process holds the folder's lock.

    Args:
        folder: The folder of a run, a learner or a comparison.
        parts: Names of subfolders that are searched too, each together with the folders directly in it.
    """
    inside = [folder / part for part in parts]
    for place in [folder, *inside, *(each for part in inside for each in part.glob("*"))]:
        for path in place.iterdir() if place.is_dir() else ():
            if path.is_file() and _TEMPORARY.match(path.name):
                path.unlink(missing_ok=True)


def check_file(path: Path, sha256: object, list_name: str, *, size: object = None) -> None:
    """Make sure that a file still is what was written.

    Args:
        path: The file.
        sha256: The hash it was written with.
        list_name: The file that lists it, for the message.
        size: Its expected size in bytes, which is checked first; None if it is not known.

    Raises:
        RunError: The file is missing, or has another size or content.
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
