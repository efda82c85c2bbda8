"""Conversations as examples: the last assistant message is the target, what comes before is the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kifuse.errors import DataError, did_you_mean
from kifuse.tasks.readers.rows import Row, checked_text, kind_of
from kifuse.tasks.transcript import SPEAKERS, transcript

_ROLES = ("system", "developer", *SPEAKERS)


def read_messages(row: Row) -> tuple[str, str, str, str]:
    """Part a conversation into prompt and target.

    System messages are never cut. One user message is the text as it stands; a longer exchange is written
    as a transcript with a line ``User:`` or ``Assistant:`` for each message.

    Args:
        row: A row with a field ``messages``.

    Returns:
        Head, body and tail of the prompt, and the target.

    Raises:
        DataError: If the messages are no conversation that ends with the assistant.
    """
    messages = row.values["messages"]
    if not isinstance(messages, list) or len(messages) < 2:
        found = f"a list of {len(messages)}" if isinstance(messages, list) else kind_of(messages)
        raise DataError(f"{row.where}: 'messages' is {found}, expected a list of at least two messages.")
    turns = [_turn(row, number, message) for number, message in enumerate(messages, 1)]
    role, target = turns.pop()
    if role != "assistant":
        raise DataError(
            f"{row.where}: the last of 'messages' has the role '{role}', expected 'assistant', whose text is "
            f"what is learned."
        )
    if not any(role == "user" for role, _ in turns):
        raise DataError(f"{row.where}: 'messages' has no message of the role 'user' before the last one.")
    return *transcript(messages[:-1]), target


def with_instruction(messages: Sequence[Mapping[str, Any]], text: str) -> list[dict[str, Any]]:
    """Put an instruction in front of what the user says first."""
    changed = [dict(message) for message in messages]
    first = next((message for message in changed if message.get("role") == "user"), None)
    if first is not None and text:
        content = first["content"]
        parts = isinstance(content, list)
        first["content"] = [{"type": "text", "text": text}, *content] if parts else f"{text}{content}"
    return changed


def _turn(row: Row, number: int, message: Any) -> tuple[str, str]:
    what = f"message {number}"
    if not isinstance(message, dict):
        raise DataError(
            f"{row.where}: {what} is {kind_of(message)}, expected an object with 'role' and 'content'."
        )
    for key in ("role", "content"):
        if key not in message:
            raise DataError(f"{row.where}: {what} has no '{key}', expected text.{did_you_mean(key, message)}")
    role = checked_text(message["role"], row.where, f"'role' of {what}")
    if role not in _ROLES:
        raise DataError(
            f"{row.where}: 'role' of {what} is '{role}', expected one of {', '.join(_ROLES)}."
            f"{did_you_mean(role, _ROLES)}"
        )
    content = message["content"]
    if isinstance(content, list):
        content = "".join(_text_part(row, what, part) for part in content)
    return role, checked_text(content, row.where, f"'content' of {what}")


def _text_part(row: Row, what: str, part: Any) -> str:
    if not isinstance(part, dict) or part.get("type") != "text":
        raise DataError(
            f"{row.where}: 'content' of {what} holds a part that is no text; only text can be learned."
        )
    return checked_text(part.get("text"), row.where, f"'text' in 'content' of {what}", empty=True)
