"""Long lists of rows, examples and token ids stay on disk, so that data sets may be larger than memory."""

from __future__ import annotations

import json
import os
import tempfile
import weakref
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, chain, islice
from typing import Any, Generic, TypeVar, cast, overload

T = TypeVar("T")

MANY = 10_000
"""A list of more items than this stays on disk; a shorter one is faster in memory."""


class Lazy(Sequence[T]):
    """A sequence whose items are made when they are asked for; each time anew."""

    def item(self, place: int) -> T:
        """Make one item; `place` is at least 0 and below the length."""
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[T, ...]: ...

    def __getitem__(self, index: int | slice) -> T | tuple[T, ...]:
        if isinstance(index, slice):
            return tuple(map(self.item, range(*index.indices(len(self)))))
        if not -len(self) <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        return self.item(index % len(self))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Lazy):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __hash__(self) -> int:
        return hash(len(self))


class OnDisk(Lazy[T]):
    """Items in a temporary file that has no name and ends with the process.

    Args:
        items: The items; they are read once.
        state: Describes an item as a JSON value. An item that JSON cannot hold stays in memory.
        back: Makes the item from this value.
    """

    def __init__(self, items: Iterable[T], state: Callable[[T], Any], back: Callable[[Any], T]) -> None:
        self._back, self._odd = back, dict[int, T]()
        self._file, self._ends = tempfile.TemporaryFile(), array("q", [0])  # noqa: SIM115 - kept open
        for place, item in enumerate(items):
            written = b""
            try:
                written = json.dumps(state(item)).encode("ascii")
            except (TypeError, ValueError):
                self._odd[place] = item
            self._file.write(written)
            self._ends.append(self._ends[-1] + len(written))
        self._file.flush()
        weakref.finalize(self, self._file.close)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def item(self, place: int) -> T:
        """Read one item."""
        if place in self._odd:
            return self._odd[place]
        start, end = self._ends[place], self._ends[place + 1]
        # reading at a place moves no position that another thread or a forked process would share
        return self._back(json.loads(os.pread(self._file.fileno(), end - start, start)))


class Joined(Lazy[T], Generic[T]):
    """Several sequences, one after another."""

    def __init__(self, parts: Iterable[Sequence[T]]) -> None:
        self._parts = [part for part in parts if len(part)]
        self._ends = list(accumulate(map(len, self._parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def item(self, place: int) -> T:
        """Return one item of the part that holds it."""
        part = bisect_right(self._ends, place)
        return self._parts[part][place - (self._ends[part - 1] if part else 0)]


def joined(*parts: Sequence[T]) -> Sequence[T]:
    """Put sequences one after another, without a copy of the items."""
    filled = [part for part in parts if len(part)]
    return filled[0] if len(filled) == 1 else Joined(filled)


def held(items: Iterable[T], spill: Callable[[Iterable[T]], Lazy[T]]) -> Sequence[T]:
    """Keep items in a list, or on disk if there are more than `MANY`.

    Args:
        items: The items; they are read once.
        spill: Puts them on disk.
    """
    if isinstance(items, Lazy):
        return cast("Lazy[T]", items)
    source = iter(items)
    first = list(islice(source, MANY + 1))
    return first if len(first) <= MANY else spill(chain(first, source))
