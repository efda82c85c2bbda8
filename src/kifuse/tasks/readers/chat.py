"""Reads chats: as messages for a chat template, and as a transcript for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kifuse.errors import DataError, KifuseError, did_you_mean
from kifuse.io.storage import parse_json
from kifuse.tasks.readers.rows import Row, checked_text, kind_of
from kifuse.tasks.task import Conversation
from kifuse.tasks.transcript import SPEAKERS, message_text, transcript

_ROLES = ("system", "developer", *SPEAKERS)
_OTHER_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "function": "tool",
    "ipython": "tool",
}
_CALLS = ("function_call", "tool_call")
KNOWN_KEYS = frozenset(
    {"role", "content", "from", "value", "name", "tool_calls", "tool_call_id", "function_call", "id"}
    | {"reasoning_content", "reasoning", "thinking", "weight", "train", "loss", "type", "refusal", "audio"}
)
"""Known keys of a message; other keys also go to the chat template, which may not use them."""


def read_turns(row: Row, field: str) -> list[dict[str, Any]]:
    """Read the messages in a field.

    Args:
        row: The row.
        field: The name of the field; its messages have ``role`` and ``content``, or ``from`` and ``value``.

    Returns:
        The messages with standard roles, each content as one text, arguments of tool calls as objects, and
        every other key unchanged.

    Raises:
        DataError: If they are not a chat that ends with the assistant, or hold something other than text.
    """
    messages = listed(row.values[field])
    if not isinstance(messages, list) or len(messages) < 2:
        found = f"a list of {len(messages)}" if isinstance(messages, list) else kind_of(messages)
        raise DataError(f"{row.where}: '{field}' is {found}, expected a list of at least two messages.")
    turns = [_turn(row, number, message) for number, message in enumerate(messages, 1)]
    if turns[-1]["role"] != "assistant":
        raise DataError(
            f"{row.where}: the last of '{field}' has the role '{turns[-1]['role']}', expected 'assistant', "
            "as its text is learned. Leave out what comes after the assistant's last message."
        )
    if not any(turn["role"] == "user" for turn in turns[:-1]):
        raise DataError(f"{row.where}: '{field}' has no message of the role 'user' before the last one.")
    return turns


def read_tools(row: Row) -> list[Any] | None:
    """Read the definitions of tools from the field ``tools``, which may be JSON text."""
    if not row.filled("tools"):
        return None
    tools = listed(row.values["tools"])
    if not isinstance(tools, list):
        raise DataError(f"{row.where}: 'tools' is {kind_of(tools)}, expected a list of definitions of tools.")
    found = [listed(tool) for tool in tools]
    for number, tool in enumerate(found, 1):
        if not isinstance(tool, dict):
            raise DataError(
                f"{row.where}: 'tools' entry {number} is {kind_of(tool)}, expected an object that defines a "
                "tool."
            )
    return found


def written(turns: Sequence[Mapping[str, Any]]) -> tuple[str, str, str, str]:
    """Write a chat as text, for people and for models without a chat template.

    Args:
        turns: The messages from `read_turns`, with the learned answer last.

    Returns:
        Head, body and tail of the prompt (see `kifuse.tasks.transcript`), and the target.
    """
    return *transcript(turns[:-1]), message_text(turns[-1])


def conversation(
    row: Row, turns: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None, head: str, head_at: int
) -> Conversation:
    """Make the conversation of an example.

    Args:
        row: The row, for messages.
        turns: The messages.
        tools: Definitions of tools.
        head: The task's instruction and options; put before the text of one message, as before any other
            input.
        head_at: Index of that message.

    Returns:
        The conversation.

    Raises:
        DataError: A value in the conversation cannot be written as JSON.
    """
    messages = [dict(turn) for turn in turns]
    if head:
        text = messages[head_at]["content"]
        messages[head_at]["content"] = head + text if text else head.rstrip("\n")
    try:
        found = Conversation.of(messages, tools)
        found.text.encode("utf-8")
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{row.where}: a message or tool has a value that JSON does not allow: {error}; expected texts, "
            "numbers, lists and objects."
        ) from error
    return found


def unknown_keys(turns: Sequence[Mapping[str, Any]]) -> set[str]:
    """Keys of messages that are not in `KNOWN_KEYS`."""
    return {str(key) for turn in turns for key in turn if key not in KNOWN_KEYS}


def listed(value: Any) -> Any:
    """Parse a list or object that is given as JSON text, as in CSV; return anything else unchanged."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return parse_json(value, "")
        except KifuseError:
            return value
    return value


def _turn(row: Row, number: int, message: Any) -> dict[str, Any]:
    what = f"message {number}"
    message = listed(message)
    if not isinstance(message, dict):
        raise DataError(
            f"{row.where}: {what} is {kind_of(message)}, expected an object with 'role' and 'content'."
        )
    turn = {key: value for key, value in message.items() if value is not None}
    speaker, text = ("from", "value") if "role" not in message and "from" in message else ("role", "content")
    if speaker not in message:
        raise DataError(
            f"{row.where}: {what} has no '{speaker}', expected text.{did_you_mean(speaker, message)}"
        )
    role = checked_text(turn.pop(speaker, None), row.where, f"'{speaker}' of {what}")
    content = turn.pop(text, None)
    if role in _CALLS:
        turn["tool_calls"], content, role = _as_servers_have(content), None, "assistant"
    elif role not in _ROLES:
        role = _OTHER_ROLES.get(role, role)
    if role not in _ROLES:
        known = [*_ROLES, *_OTHER_ROLES, *_CALLS]
        raise DataError(
            f"{row.where}: '{speaker}' of {what} is '{role}', expected one of {', '.join(_ROLES)}."
            f"{did_you_mean(role, known)}"
        )
    calls = _calls(row, what, turn)
    if calls:
        turn["tool_calls"] = calls
    elif text not in message:
        raise DataError(f"{row.where}: {what} has no '{text}', expected text.{did_you_mean(text, message)}")
    if isinstance(content, list):
        content = "".join(_text_part(row, what, part) for part in content)
    if content is None and calls:
        content = ""
    empty = bool(calls) or role in ("system", "developer", "tool")
    content = checked_text(content, row.where, f"'{text}' of {what}", empty=empty)
    return {"role": role, "content": content, **turn}


def _as_servers_have(calls: Any) -> Any:
    """Turn ShareGPT's calls, each a name and arguments, into the form that servers give to templates."""
    found = listed(calls)
    if isinstance(found, list):
        return [_as_servers_have(call) for call in found]
    bare = isinstance(found, dict) and "name" in found and "function" not in found
    return {"type": "function", "function": found} if bare else found


def _text_part(row: Row, what: str, part: Any) -> str:
    if not isinstance(part, dict) or part.get("type") != "text":
        raise DataError(
            f"{row.where}: 'content' of {what} has a part that is not text. Only text can be learned, so "
            "leave such rows out."
        )
    return checked_text(part.get("text"), row.where, f"'text' in 'content' of {what}", empty=True)


def _calls(row: Row, what: str, turn: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a message's tool calls with their arguments as objects, as servers give them to templates."""
    calls = listed(turn.get("tool_calls"))
    if calls is None and "function_call" in turn:
        calls = [{"type": "function", "function": listed(turn.pop("function_call"))}]
    calls = [calls] if isinstance(calls, dict) else calls
    if calls in (None, []):
        turn.pop("tool_calls", None)
        return []
    if not isinstance(calls, list):
        raise DataError(
            f"{row.where}: the tool calls of {what} are {kind_of(calls)}, expected a list of objects."
        )
    found = []
    for call in map(listed, calls):
        inner = listed(call.get("function", call)) if isinstance(call, dict) else None
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
            raise DataError(
                f"{row.where}: a tool call of {what} has no function name, expected "
                '{"function": {"name": ..., "arguments": {...}}}.'
            )
        inner = {**inner, "arguments": listed(inner["arguments"])} if "arguments" in inner else inner
        found.append({**call, "function": inner} if "function" in call else inner)
    return found
