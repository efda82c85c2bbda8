"""Prompt and completion as in TRL: two texts, or two lists of messages."""

from __future__ import annotations

from dataclasses import replace

from kifuse.errors import DataError
from kifuse.tasks.readers.formats.form import Asked, Format
from kifuse.tasks.readers.formats.messages import chat
from kifuse.tasks.readers.long_sequence import part_cue
from kifuse.tasks.readers.rows import Row, kind_of


def read(row: Row, instructed: bool) -> Asked:
    """Read a pair of texts, or of lists of messages."""
    prompt, completion = row.values["prompt"], row.values["completion"]
    if isinstance(prompt, list):
        if not isinstance(completion, list):
            raise DataError(
                f"{row.where}: 'completion' is {kind_of(completion)}, expected a list of messages, as in "
                "'prompt'."
            )
        joined = Row(row.where, {**row.values, "messages": [*prompt, *completion]})
        return replace(chat(joined, "messages"), answer="completion")
    if isinstance(completion, list) and any(isinstance(item, dict) for item in completion):
        raise DataError(
            f"{row.where}: 'completion' is a list of messages and 'prompt' is {kind_of(prompt)}, expected a "
            'list of messages in both: "prompt": [{"role": "user", "content": ...}].'
        )
    body, tail = part_cue(row.get_text("prompt", empty=instructed))
    references = row.get_references("completion")
    return Asked(body, references, "completion", tail=tail, instruction=row.instruction())


FORMAT = Format(
    "prompt_completion",
    needs=(("prompt", "completion"),),
    read=read,
    may=("tools",),
    about="TRL: two texts, or two lists of messages",
)
