"""Chats as in ShareGPT: ``conversations`` with ``from`` and ``value``."""

from __future__ import annotations

from kifuse.tasks.readers.formats.form import Asked, Format
from kifuse.tasks.readers.formats.messages import chat
from kifuse.tasks.readers.rows import Row


def read(row: Row, instructed: bool) -> Asked:
    """Read a chat that ends with the assistant; its messages may also have ``role`` and ``content``."""
    return chat(row, "conversations" if "conversations" in row.values else "conversation")


FORMAT = Format(
    "sharegpt",
    needs=(("conversations",), ("conversation",)),
    read=read,
    may=("tools", "system", "references"),
    about="ShareGPT: messages with `from` (`human`, `gpt`, `function_call`, `observation`, ...) and `value`",
)
