"""What a format of rows is, and what it makes of a row."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from kifuse.tasks.readers.rows import Row

COMMON = ("instruction", "options", "id", "task")
"""Fields that any row may have."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a row asks and accepts, before the task's instruction and options are put to it.

    Attributes:
        body: The text; loses its middle when the whole is too long.
        references: Accepted outputs; the first is learned.
        answer: Name of the field that holds them, for messages.
        lead: Stands between the instruction and the body, and is never cut: system messages.
        tail: A final cue of the row's own.
        instruction: The row's own, if it has one.
        messages: The whole chat with its learned answer, if it is one.
        tools: Definitions of the tools that the model may call.
        head_at: Which message the instruction and options are put before.
        label: The number that stands in the place of a label's name; the names are known to the task.
        continued: Whether it is a text to continue, which asks nothing.
    """

    body: str
    references: tuple[str, ...]
    answer: str
    lead: str = ""
    tail: str = ""
    instruction: str | None = None
    messages: Sequence[dict[str, Any]] | None = None
    tools: Sequence[Any] | None = None
    head_at: int = 0
    label: int | None = None
    continued: bool = False


@dataclass(frozen=True)
class Format:
    """A format of rows.

    Attributes:
        name: What users call it.
        needs: Sets of fields; a row that has all of one set is in this format.
        may: Further fields that it reads.
        read: Reads a row; the second argument tells whether the task has an instruction, with which an input
            may be empty.
        never: Fields that a row of this format does not have, not even empty.
        about: One line for the guide.
    """

    name: str
    needs: tuple[tuple[str, ...], ...]
    read: Callable[[Row, bool], Asked]
    may: tuple[str, ...] = ()
    never: frozenset[str] = field(default_factory=frozenset)
    about: str = ""

    @property
    def fields(self) -> tuple[str, ...]:
        """All fields that it may read."""
        return tuple(dict.fromkeys([*(name for need in self.needs for name in need), *self.may]))

    def detect(self, fields: Collection[str]) -> tuple[str, ...] | None:
        """The needed fields, if they are all among those of a row; else None."""
        return next((need for need in self.needs if all(name in fields for name in need)), None)
