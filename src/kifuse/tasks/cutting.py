"""Chats that are too long lose the middle of their longest texts; no role and no system message is cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kifuse.tasks.chat_template import Message
from kifuse.tasks.task import Example

_KEPT = ("system", "developer")


@dataclass(frozen=True)
class Asked:
    """What is asked in a chat, with the texts in it that may be cut.

    Attributes:
        messages: All but the answer.
        places: Of each text that may be cut: its message, its part there or None, and what stands before and
            after it and is not cut.
        texts: Those texts.
    """

    messages: list[Message]
    places: list[tuple[int, int | None, str, str]]
    texts: list[str]

    @classmethod
    def of(cls, example: Example, messages: Sequence[Message]) -> Asked:
        """Find the texts of an example that may be cut: the body, or in a chat what the roles say."""
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
        """The messages with other texts in the places of those that may be cut."""
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
    """Cut the middle of the longest texts until the whole fits.

    Args:
        ids: Token ids of each text.
        length: Tokens of the whole, uncut.
        most: Tokens that it may have.
        attempt: Makes the whole of the beginnings and ends that are kept, and tells its number of tokens.

    Returns:
        None once it fits; else the number of tokens with all texts cut to nothing.
    """
    room = sum(map(len, ids)) - (length - most)
    while True:
        level = _level([len(row) for row in ids], max(room, 0))
        found = attempt([_ends(row, level) for row in ids])
        if found <= most:
            return None
        if room <= 0:
            return found
        # tokens around a cut may part differently, so the rest can be off by a few
        room = max(min(room - 1, room - (found - most)), 0)


def _level(lengths: Sequence[int], room: int) -> int:
    """The length to cut the longest texts to, so that all of them together have at most `room` tokens."""
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
    """The beginning and the end of a text that may have so many tokens."""
    if len(ids) <= room:
        return ids
    return ids[: (room + 1) // 2] + ids[len(ids) - room // 2 :]
