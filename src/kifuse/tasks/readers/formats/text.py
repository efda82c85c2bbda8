"""Texts to continue, for continued pretraining: every token is learned."""

from __future__ import annotations

from kifuse.tasks.readers.formats import (
    alpaca,
    classified,
    conversations,
    input_output,
    messages,
    prompt_completion,
    question_answer,
)
from kifuse.tasks.readers.formats.form import Asked, Format
from kifuse.tasks.readers.rows import Row

_OTHERS = (alpaca, classified, conversations, input_output, messages, prompt_completion, question_answer)


def read(row: Row, instructed: bool) -> Asked:
    """Read a text without a question."""
    return Asked("", (row.get_text("text"),), "text", continued=True)


FORMAT = Format(
    "text",
    needs=(("text",),),
    read=read,
    # a row with an answer of any kind is not a bare text, even if its question has another name
    never=frozenset(
        {name for each in _OTHERS for need in each.FORMAT.needs for name in need} - {"text", "instruction"}
    ),
    about="continued pretraining: every token is learned, scored by perplexity",
)
