"""The interface of a format of rows, and the result of reading a row."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from kifuse.tasks.readers.rows import Row

COMMON = ("instruction", "options", "id", "task")
"""Fields that any row may have."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The prompt and the accepted answers of a row, before the task's instruction and options are added.

    Attributes:
        body: The text; its middle is cut when the prompt is too long.
        references: Accepted outputs; the first is learned.
        answer: Name of the field that holds the outputs, for messages.
        lead: Text between the instruction and the body that is never cut: system messages.
        tail: The row's own final cue.
        instruction: The row's own instruction, if it has one.
        messages: The whole chat with its learned answer, if the row is a chat.
        tools: Definitions of the tools that the model may call.
        head_at: Index of the message before which the instruction and options are put.
        label: The number that stands for a label's name; the task knows the names.
        continued: Whether the row is a text to continue, without a question.
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
        name: The name that users give.
        needs: Sets of fields; a row that has all of one set is in this format.
        may: Further fields that the format reads.
        read: Reads a row; the second argument says whether the task has an instruction, because then an input
            may be empty.
        never: Fields that a row of this format must not have, not even empty.
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
        """All fields that the format may read."""
        return tuple(dict.fromkeys([*(name for need in self.needs for name in need), *self.may]))

    def detect(self, fields: Collection[str]) -> tuple[str, ...] | None:
        """Return the needed fields if a row has all of them; otherwise None."""
        return next((need for need in self.needs if all(name in fields for name in need)), None)
