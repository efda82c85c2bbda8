"""Ways to damage a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def one_byte(file: Path, older: Path | None) -> None:
    """Change one bit in the middle of the file."""
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)


def truncated(file: Path, older: Path | None) -> None:
    """Remove the second half of the file."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def deleted(file: Path, older: Path | None) -> None:
    """Delete the file."""
    file.unlink()


def emptied(file: Path, older: Path | None) -> None:
    """Empty the file; JSON becomes an object or a list without entries."""
    first = file.read_bytes()[:1]
    empty = {b"{": b"{}\n", b"[": b"[]\n"} if file.suffix == ".json" else {}
    file.write_bytes(empty.get(first, b""))


def swapped(file: Path, older: Path | None) -> None:
    """Replace the file by its earlier version."""
    assert older is not None
    file.write_bytes(older.read_bytes())


DAMAGES: dict[str, Callable[[Path, Path | None], None]] = {
    "one byte": one_byte,
    "truncated": truncated,
    "deleted": deleted,
    "emptied": emptied,
    "an older version": swapped,
}
