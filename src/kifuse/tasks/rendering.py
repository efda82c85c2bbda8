"""Decides which text a model gets: the plain prompt, or one that the tokenizer's chat template renders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from kifuse.errors import ModelError, counted
from kifuse.tasks.task import Example

Form = Literal["chat template", "plain", "one turn"]
CHAT: Form = "chat template"
PLAIN: Form = "plain"
ONE_TURN: Form = "one turn"
"""The form of an earlier kifuse that was told to use the template: the whole prompt is one user turn."""


@dataclass(frozen=True)
class Rendering:
    """The form of a model's prompts, and the reason for it.

    Attributes:
        form: ``"chat template"``, ``"plain"``, or ``"one turn"`` of an earlier kifuse.
        why: The reason, in a few words.
    """

    form: Form
    why: str

    @property
    def by_template(self) -> bool:
        """Whether the tokenizer's chat template makes the prompts."""
        return self.form != PLAIN

    @property
    def template(self) -> bool | Literal["one turn"]:
        """The value of the `Encoder`'s argument `chat_template`."""
        return "one turn" if self.form == "one turn" else self.by_template

    def state(self) -> dict[str, str]:
        """Return what a record keeps of the rendering."""
        return {"form": self.form, "why": self.why}

    def note(self, examples: Iterable[Example]) -> str:
        """Note how examples are written in this form; empty if there is nothing to note."""
        if self.form == CHAT:
            return ""
        # whether each chat has tools
        chats = Counter(bool(e.conversation.tools) for e in examples if e.conversation is not None)
        if not chats:
            return ""
        tools = chats[True]
        gone = f" The tool definitions of {counted(tools, 'example')} are left out." if tools else ""
        where = "in one turn of a user" if self.form == ONE_TURN else "as plain text"
        return (
            f"chats are written {where}, with a line 'User:' or 'Assistant:' for each message (a single "
            f"question is written as it is), as {self.why}.{gone}"
        )


def decide_rendering(
    setting: bool | Literal["auto"],
    tokenizer: Any,
    *,
    benchmark: str | None = None,
    begun: Form | None = None,
) -> Rendering:
    """Decide whether prompts go through the tokenizer's chat template.

    Args:
        setting: `data.chat_template`.
        tokenizer: The model's tokenizer.
        benchmark: `data.benchmark`.
        begun: The form with which the run or the learner began, if it has begun.

    Returns:
        The form, and the reason for it.

    Raises:
        ModelError: The template is requested, but there is none.
    """
    has_one = bool(getattr(tokenizer, "chat_template", None))
    if setting is True or (setting == "auto" and begun in (CHAT, ONE_TURN)):
        if not has_one:
            raise ModelError("The tokenizer has no chat template; set data.chat_template to false.")
        if begun == ONE_TURN:
            return Rendering(ONE_TURN, "it began so; a new output folder uses the turns that a server uses")
        return Rendering(CHAT, "data.chat_template is true" if setting is True else "it began so")
    if setting is False:
        return Rendering(PLAIN, "data.chat_template is false")
    if begun == PLAIN:
        return Rendering(PLAIN, "it began so; data.chat_template: true would change it")
    if benchmark is not None:
        return Rendering(PLAIN, f"the benchmark {benchmark} keeps its published prompts")
    if not has_one:
        return Rendering(PLAIN, "the tokenizer has no chat template")
    return Rendering(CHAT, "the tokenizer has one, and servers of the model use it")
