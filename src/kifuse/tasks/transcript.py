"""A chat as plain text, for people and for models without a chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

SPEAKERS = {"user": "User", "assistant": "Assistant", "tool": "Tool"}
"""How a line of a transcript begins, by the role of its message; other roles stand in front of it all."""

Message = Mapping[str, Any]


def transcript(messages: Sequence[Message]) -> tuple[str, str, str]:
    r"""Write what is asked in a chat as one text.

    Args:
        messages: All but the answer.

    Returns:
        Head, body and tail of a prompt. System messages are the head. One user message is the body as it
        stands; a longer exchange gets a line ``User:`` or ``Assistant:`` for each message, and ends with
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
