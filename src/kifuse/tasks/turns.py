"""Chooses the answers of a chat that are learned: the last one, or each one as a separate example."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

from kifuse.errors import DataError, counted
from kifuse.tasks.encoded import name_of
from kifuse.tasks.task import Conversation, Example, Task
from kifuse.tasks.transcript import message_text, transcript


def with_learned_turns(task: Task, train_on: Literal["last", "all"]) -> Task:
    """Make an example from each answer that is learned.

    The prompt of an answer is the messages before it, exactly as a server will send them. An answer with
    ``weight: 0`` or ``train: false`` is not learned. Test examples stay unchanged: their last answer is
    scored.

    Args:
        task: The task as it was read.
        train_on: `data.train_on`.

    Returns:
        The task, with a warning that gives the numbers if examples were added or left out.

    Raises:
        DataError: A weight is neither 0 nor 1.
    """
    chats = made = silent = 0

    def learned() -> Iterator[Example]:
        nonlocal chats, made, silent
        for example in task.train:
            if example.conversation is None:
                yield example
                continue
            chats += 1
            messages = example.conversation.messages
            last = len(messages) - 1
            for place in range(0 if train_on == "all" else last, last + 1):
                if messages[place].get("role") != "assistant":
                    continue
                asked = any(message.get("role") == "user" for message in messages[:place])
                if asked and _learned(example, messages[place]):
                    made += 1
                    yield example if place == last else _turn(example, place)
                else:
                    silent += 1

    train = Example.held(learned())
    if made == chats and not silent:
        return task
    if not train:
        first = task.train[0]
        raise DataError(
            f"{name_of(first)}: task '{task.name}' has no answer to learn, as each one that data.train_on: "
            f"{train_on} chooses has weight 0 or train: false, or follows no user's message. Give one of "
            "them weight 1, or set data.train_on to all."
        )
    said = (
        f"Task '{task.name}': {counted(made, 'training example')} of {counted(chats, 'chat')}, one for each "
        "answer learned"
    )
    if silent:
        said += (
            f"; {counted(silent, 'answer')} not learned, as they have weight 0 or train: false, or follow "
            "no user's message"
        )
    return replace(task, train=train, warnings=(*task.warnings, f"{said}."))


def _learned(example: Example, message: dict[str, Any]) -> bool:
    for key in ("weight", "train", "loss"):
        value = message.get(key)
        if value not in (0, 1, None):
            raise DataError(
                f"{name_of(example)}: '{key}' of a message is {value!r}, expected "
                f"{'0 or 1' if key == 'weight' else 'true or false'}: an answer is learned or not."
            )
        if value is not None and not value:
            return False
    return True


def _turn(example: Example, place: int) -> Example:
    """Make an example from an earlier answer of a chat."""
    chat = example.conversation
    if chat is None:
        return example
    messages = chat.messages[: place + 1]
    lead, _, _ = transcript(chat.messages[:-1])
    instruction = example.head.removesuffix(lead)
    head, body, tail = transcript(messages[:-1])
    if instruction and body.startswith(instruction):
        head, body = instruction + head, body.removeprefix(instruction)
    return Example(
        head,
        body,
        tail,
        (message_text(messages[-1]),),
        None if example.id is None else f"{example.id}, message {place + 1}",
        Conversation.of(messages, chat.tools),
        where=example.where,
    )
