"""Cuts chats that are too long in the middle of their longest texts; roles and system messages stay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kifuse.tasks.chat_template import Message
from kifuse.tasks.task import Example

_KEPT = ("system", "developer")


@dataclass(frozen=True)
class Asked:
    """The prompt of a chat, with those of its texts that may be cut.

    Attributes:
        messages: All messages but the answer.
        places: For each text that may be cut: its message, its part there or None, and the texts before and
            after it that are not cut.
        texts: The texts that may be cut.
    """

    messages: list[Message]
    places: list[tuple[int, int | None, str, str]]
    texts: list[str]

    @classmethod
    def of(cls, example: Example, messages: Sequence[Message]) -> Asked:
        """Find the texts of an example that may be cut: the body, or in a chat the texts of the roles."""
        asked = list(messages)
        if example.conversation is None:
            tail = "" if example.cue_added else example.tail
            return cls(asked, [(0, None, example.head, tail)], [example.body])
        places: list[tuple[int, int | None, str, str]] = []
        texts: list[str] = []
        for number, message in enumerate(asked):
            content = message.get("content")
            if message.get("role") in _KEPT or not content:
                continue
            if isinstance(content, str):
                places.append((number, None, "", ""))
                texts.append(content)
                continue
            for which, part in enumerate(content):
                if isinstance(part.get("text"), str):
                    places.append((number, which, "", ""))
                    texts.append(part["text"])
        return cls(asked, places, texts)

    def with_texts(self, texts: Sequence[str]) -> list[Message]:
        """Return the messages with other texts in place of those that may be cut."""
        changed = [dict(message) for message in self.messages]
        for (number, which, before, after), text in zip(self.places, texts, strict=True):
            message = changed[number]
            if which is None:
                message["content"] = before + text + after
            else:
                parts = [dict(part) for part in message["content"]]
                parts[which]["text"] = text
                message["content"] = parts
        return changed


def shorten(
    ids: Sequence[list[int]],
    length: int,
    most: int,
    attempt: Callable[[list[tuple[list[int], list[int]]]], int],
) -> int | None:
    """Cut the middle of the longest texts until the whole prompt fits.

    Args:
        ids: Token ids of each text.
        length: Number of tokens of the uncut prompt.
        most: Most tokens that the prompt may have.
        attempt: Builds the prompt from the beginnings and ends that are kept, and returns its number of
            tokens.

    Returns:
        None once it fits; otherwise the number of tokens with all texts cut to nothing.
    """
    room = sum(map(len, ids)) - (length - most)
    while True:
        level = _level([len(row) for row in ids], max(room, 0))
        found = attempt([_ends(row, level) for row in ids])
        if found <= most:
            return None
        if room <= 0:
            return found
        # around a cut the text may split into other tokens, so the result can be wrong by a few tokens
        room = max(min(room - 1, room - (found - most)), 0)


def _level(lengths: Sequence[int], room: int) -> int:
    """The length to cut the longest texts to, so that all texts together have at most `room` tokens."""
    left, low = room, sorted(lengths)
    for place, length in enumerate(low):
        share = left // (len(low) - place)
        if length > share:
            return share
        left -= length
    return low[-1] if low else 0


def _ends(row: list[int], level: int) -> tuple[list[int], list[int]]:
    if len(row) <= level:
        return row, []
    return row[: (level + 1) // 2], row[len(row) - level // 2 :]


def without_middle(ids: list[int], room: int) -> list[int]:
    """Return the beginning and the end of a text, with at most `room` tokens together."""
    if len(ids) <= room:
        return ids
    return ids[: (room + 1) // 2] + ids[len(ids) - room // 2 :]
