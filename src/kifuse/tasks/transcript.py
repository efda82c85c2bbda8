"""Writes a chat as plain text, for people and for models without a chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

SPEAKERS = {"user": "User", "assistant": "Assistant", "tool": "Tool"}
"""The start of a transcript's line, by the role of its message; messages of other roles go into the head."""

Message = Mapping[str, Any]


def transcript(messages: Sequence[Message]) -> tuple[str, str, str]:
    r"""Write the prompt of a chat as one text.

    Args:
        messages: All messages but the answer.

    Returns:
        Head, body and tail of a prompt. System messages are the head. A single user message becomes the body
        unchanged; a longer exchange gets a line ``User:`` or ``Assistant:`` for each message, and ends with
        ``"\nAssistant:"``.
    """
    head = "".join(f"{message_text(m)}\n\n" for m in messages if m.get("role") not in SPEAKERS)
    talk = [(SPEAKERS[m["role"]], message_text(m)) for m in messages if m.get("role") in SPEAKERS]
    if len(talk) == 1:
        return head, talk[0][1], ""
    return head, "\n".join(f"{speaker}: {text}" for speaker, text in talk), "\nAssistant:"


def message_text(message: Message) -> str:
    """Write one message as text: its content, then the tools that it calls as a line of JSON."""
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    calls = [call.get("function", call) for call in message.get("tool_calls") or ()]
    shown = [{key: call[key] for key in ("name", "arguments") if key in call} for call in calls]
    lines = [str(content)] if content else []
    return "\n".join([*lines, *([json.dumps(shown, ensure_ascii=False)] if shown else [])])
