"""Chats in a field ``messages`` with role and content, as in TRL and at OpenAI."""

from __future__ import annotations

from kifuse.tasks.readers.chat import read_tools, read_turns, written
from kifuse.tasks.readers.formats.form import Asked, Format
from kifuse.tasks.readers.rows import Row


def read(row: Row, instructed: bool) -> Asked:
    """Read a chat that ends with the assistant."""
    return chat(row, "messages")


def chat(row: Row, field: str) -> Asked:
    """Read the chat in a field; its last message is learned.

    Args:
        row: The row; ``references`` may hold further accepted answers, ``system`` a system text.
        field: The name of the field that holds the messages.

    Returns:
        The chat, both as messages and as a transcript.
    """
    turns = read_turns(row, field)
    if row.filled("system"):
        turns.insert(0, {"role": "system", "content": row.get_text("system")})
    lead, body, tail, target = written(turns)
    more = row.get_references("references") if row.filled("references") else ()
    return Asked(
        body,
        (target, *(text for text in more if text != target)),
        field,
        lead=lead,
        tail=tail,
        instruction=row.instruction(),
        messages=turns,
        tools=read_tools(row),
        head_at=next(i for i, turn in enumerate(turns) if turn["role"] == "user"),
    )


FORMAT = Format(
    "messages",
    needs=(("messages",),),
    read=read,
    may=("tools", "system", "references"),
    about="chats; `tools`, tool calls and reasoning go to the chat template as they are",
)
