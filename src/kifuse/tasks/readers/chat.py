"""Conversations as examples: the last assistant message is the target, what comes before is the prompt."""

from __future__ import annotations

from typing import Any

from kifuse.errors import DataError, did_you_mean
from kifuse.tasks.readers.rows import Row, checked_text, kind_of

_SPEAKERS = {"user": "User", "assistant": "Assistant", "tool": "Tool"}
_ROLES = ("system", "developer", *_SPEAKERS)


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
    system = [content for role, content in turns if role not in _SPEAKERS]
    talk = [(role, content) for role, content in turns if role in _SPEAKERS]
    if not any(role == "user" for role, _ in talk):
        raise DataError(f"{row.where}: 'messages' has no message of the role 'user' before the last one.")
    head = "".join(f"{content}\n\n" for content in system)
    if len(talk) == 1:
        return head, talk[0][1], "", target
    body = "\n".join(f"{_SPEAKERS[role]}: {content}" for role, content in talk)
    return head, body, "\nAssistant:", target


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
