"""What can happen to a file while nobody looks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def one_byte(file: Path, older: Path | None) -> None:
    """Change one bit in its middle."""
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)


def truncated(file: Path, older: Path | None) -> None:
    """Lose its second half."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def deleted(file: Path, older: Path | None) -> None:
    """Be gone."""
    file.unlink()


def emptied(file: Path, older: Path | None) -> None:
    """Be there, with nothing in it: of JSON an object or a list without entries."""
    first = file.read_bytes()[:1]
    empty = {b"{": b"{}\n", b"[": b"[]\n"} if file.suffix == ".json" else {}
    file.write_bytes(empty.get(first, b""))


def swapped(file: Path, older: Path | None) -> None:
    """Be the one of an earlier time."""
    assert older is not None
    file.write_bytes(older.read_bytes())


DAMAGES: dict[str, Callable[[Path, Path | None], None]] = {
    "one byte": one_byte,
    "truncated": truncated,
    "deleted": deleted,
    "emptied": emptied,
    "an older version": swapped,
}
