"""The prompt format of an earlier kifuse, for runs begun with it: the whole prompt is one user turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kifuse.tasks.chat_template import ChatTemplate, Message, Turn
from kifuse.tasks.task import Example


class OneTurn(ChatTemplate):
    """A chat template that gets a chat as one question, its transcript; answers end like any text.

    Args:
        tokenizer: A tokenizer with a chat template and an end-of-sequence token.

    Raises:
        ModelError: The template cannot render a chat of one question and its answer.
    """

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer)
        self.end, self.lead = str(tokenizer.eos_token), ""
        self.ends = (self.end,)

    def taken(self, example: Example) -> Example:
        """Return the example as one question, with the cue that a reader added."""
        return replace(example, conversation=None, cue_added=False)

    def turn(self, messages: Sequence[Message], tools: Sequence[Any] | None, where: str) -> Turn:
        """Return the rendered question and the unchanged answer; see `ChatTemplate.turn`."""
        answer = self.without_end(str(messages[-1]["content"]))
        return Turn(self.prompt(messages[:-1], tools, where), answer, self.end)
