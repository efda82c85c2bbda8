"""Turns a user's questions to a learner into examples: texts, rows and chats, with a task's instruction."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypedDict

from kifuse.errors import ConfigError, DataError, counted, did_you_mean
from kifuse.tasks.task import Conversation, Example
from kifuse.tasks.transcript import SPEAKERS, transcript

_ANSWER = "?"
_ANSWERS = {"input": "output", "prompt": "completion", "question": "answer", "instruction": "output"}
"""For each field of the question in a row, the field of the answer."""
_EXPECTED = "texts, rows (mappings with 'input' or 'messages'), lists of messages, or Examples"


class _Head(TypedDict):
    head: str


class Way(_Head, total=False):
    """The prompt format that all examples of a task share, without the text of each example.

    Attributes:
        head: Instruction and options.
        tail: The final cue.
        cue_added: Whether a reader added the cue.
        system: The messages before the user's message, for chats.
        tools: The tools that may be called, for chats.
    """

    tail: str
    cue_added: bool
    system: list[dict[str, Any]]
    tools: list[Any] | None


def way_of(examples: Iterable[Example]) -> Way | None:
    """Find the prompt format that all examples of a task share.

    Args:
        examples: The examples of one task.

    Returns:
        The prompt format; None if the examples differ, because each has its own instruction.
    """
    ways = map(_way, examples)
    first = next(ways, None)
    return first if all(way == first for way in ways) else None


def _way(example: Example) -> Way:
    if example.conversation is None:
        return {"head": example.head, "tail": example.tail, "cue_added": example.cue_added}
    messages = example.conversation.messages[:-1]
    system = [message for message in messages if message.get("role") not in SPEAKERS]
    lead, _, _ = transcript(system)
    return {
        "head": example.head.removesuffix(lead),
        "system": system,
        "tools": example.conversation.tools,
    }


class Questions:
    """Makes examples from a user's questions.

    Args:
        ways: Returns the prompt format of each learned task, by name.
        say: Called once if a text lacks the instruction that a task was learned with; and for chats that end
            with an answer.
    """

    def __init__(self, ways: Callable[[], Mapping[str, Way | None]], say: Callable[[str], None]) -> None:
        self._ways, self._say = ways, say
        self._said = False

    def examples(self, asked: Any, task: str | None) -> list[Example]:
        """Make an example from each question.

        Args:
            asked: Texts, rows, lists of messages or examples, in a list.
            task: Name of the learned task whose instruction and options are added to texts and rows; None
                adds nothing.

        Raises:
            ConfigError: The list holds something else.
            DataError: No task with this name was learned, or a row is wrong.
        """
        if isinstance(asked, (str, bytes, Mapping, Example, os.PathLike)) or not isinstance(asked, Iterable):
            kind = "a text" if isinstance(asked, str) else type(asked).__name__
            raise ConfigError(f"generate(): found {kind}, expected a list of {_EXPECTED}.")
        items = list(asked)
        if items and all(isinstance(item, Mapping) and _is_message(item) for item in items):
            raise ConfigError(
                "generate(): found a list of messages, expected a list of chats; put it into a list: "
                "generate([messages])."
            )
        way = None if task is None else self._way(task)
        made = [self._example(item, place, way) for place, item in enumerate(items)]
        if answered := [place for place, item in enumerate(items, 1) if _is_answered(item)]:
            self._say(
                f"generate(): {counted(len(answered), 'chat')}, first entry {answered[0]}, ended with a "
                "message of the assistant, which was left out; the model answered the messages before it"
            )
        if task is None and not self._said:
            self._tell([example.input for item, example in zip(items, made, strict=True) if _is_raw(item)])
        return made

    def _way(self, task: Any) -> Way:
        ways = self._ways()
        if task not in ways:
            raise DataError(
                f"generate(): no task {task!r} was learned, expected one of {', '.join(ways) or 'none yet'}."
                f"{did_you_mean(str(task), ways)}"
            )
        found = ways[task]
        if found is None:
            raise DataError(
                f"generate(): each row of task {task!r} has its own instruction. Leave task= out and give "
                "rows with 'instruction', or messages."
            )
        return found

    def _tell(self, texts: Sequence[str]) -> None:
        """Warn once if texts lack every task's instruction although tasks were learned with one."""
        ways = {name: way for name, way in self._ways().items() if way is not None}
        heads = {name: way["head"].strip() for name, way in ways.items()}
        names = [name for name, way in ways.items() if heads[name] or way.get("system")]
        known = tuple(filter(None, heads.values()))
        if names and any(not text.lstrip().startswith(known) for text in texts):
            self._said = True
            self._say(
                f"generate(): some of these texts lack the instruction that task {names[0]!r} was learned "
                f"with; generate(texts, task={names[0]!r}) adds it"
            )

    def _example(self, item: Any, place: int, way: Way | None) -> Example:
        where = f"generate(): entry {place + 1}"
        if isinstance(item, Example):
            return item
        if isinstance(item, str):
            if not item.strip():
                raise ConfigError(f"{where} is an empty text, expected text to answer.")
            return asked_text(item, way)
        if isinstance(item, Mapping):
            return _row(dict(item), where, way)
        if isinstance(item, Sequence) and item and all(isinstance(each, Mapping) for each in item):
            return _row({"messages": [dict(each) for each in item]}, where, way)
        raise ConfigError(f"{where} is {type(item).__name__}, expected {_EXPECTED}.")


def asked_text(text: str, way: Way | None) -> Example:
    """Make a question from a text, in a task's prompt format or unchanged."""
    if way is None:
        return Example("", text, "", (_ANSWER,))
    if "system" not in way:
        tail = way.get("tail", "")
        body = text.removesuffix(tail) if tail else text
        return Example(way["head"], body, tail, (_ANSWER,), cue_added=way.get("cue_added", False))
    asked = [*way["system"], {"role": "user", "content": way["head"] + text}]
    head, body, tail = transcript([*way["system"], {"role": "user", "content": text}])
    chat = Conversation.of([*asked, {"role": "assistant", "content": _ANSWER}], way.get("tools"))
    return Example(way["head"] + head, body, tail, (_ANSWER,), conversation=chat)


def _row(row: dict[str, Any], where: str, way: Way | None) -> Example:
    from kifuse.tasks.any_task import as_task

    for key in ("messages", "prompt"):
        if isinstance(row.get(key), (list, tuple)) and row[key]:
            messages = list(row[key])
            if not isinstance(messages[-1], Mapping) or messages[-1].get("role") != "assistant":
                messages.append({"role": "assistant", "content": _ANSWER})
            row = {**{k: v for k, v in row.items() if k not in (key, "completion")}, "messages": messages}
    question = next((key for key in _ANSWERS if row.get(key) is not None), None)
    if "messages" not in row and question is None:
        raise ConfigError(
            f"{where} has the fields {', '.join(map(str, row)) or 'none'}, expected 'input' or 'messages'."
        )
    own = row.get("instruction") is not None or row.get("options") is not None
    if "messages" not in row and question is not None:
        row.setdefault(_ANSWERS[question], _ANSWER)
        if not own and way is not None and isinstance(row[question], str):
            return asked_text(row[question], way)
    try:
        return as_task([row], name="generate()", to_learn=False).train[0]
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _is_message(item: Mapping[Any, Any]) -> bool:
    return "role" in item and "messages" not in item


def _is_answered(item: Any) -> bool:
    """Whether an item is a list of messages, not a row of data, that ends with an answer."""
    last = item[-1] if isinstance(item, Sequence) and not isinstance(item, str) and item else None
    return isinstance(last, Mapping) and last.get("role") == "assistant"


def _is_raw(item: Any) -> bool:
    """Whether an item's text itself would have to contain the instruction."""
    return isinstance(item, str) or (
        isinstance(item, Mapping) and "messages" not in item and not item.get("instruction")
    )
