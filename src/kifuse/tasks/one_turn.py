"""The form of an earlier kifuse, for what was begun with it: the whole prompt as one turn of a user."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kifuse.tasks.chat_template import ChatTemplate, Message, Turn
from kifuse.tasks.task import Example


class OneTurn(ChatTemplate):
    """A chat template that is given one question, a chat as its transcript, and answers that end as any text.

    Args:
        tokenizer: With a chat template and an end-of-sequence token.

    Raises:
        ModelError: The template renders no chat of one question and its answer.
    """

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer)
        self.end, self.lead = str(tokenizer.eos_token), ""
        self.ends = (self.end,)

    def taken(self, example: Example) -> Example:
        """The example as one question, with the cue that a reader added."""
        return replace(example, conversation=None, cue_added=False)

    def turn(self, messages: Sequence[Message], tools: Sequence[Any] | None, where: str) -> Turn:
        """The question as the template renders it, and the answer as it stands; see `ChatTemplate.turn`."""
        answer = self.without_end(str(messages[-1]["content"]))
        return Turn(self.prompt(messages[:-1], tools, where), answer, self.end)
