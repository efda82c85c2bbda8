"""Pairs of an input and an output: kifuse's own format."""

from __future__ import annotations

from kifuse.tasks.readers.formats.form import Asked, Format
from kifuse.tasks.readers.long_sequence import part_cue
from kifuse.tasks.readers.rows import Row


def read(row: Row, instructed: bool) -> Asked:
    """Read a row; if there is an instruction, the input may be empty."""
    body, tail = part_cue(row.get_text("input", empty=instructed))
    return Asked(body, row.get_references("output"), "output", tail=tail, instruction=row.instruction())


FORMAT = Format(
    "input_output",
    needs=(("input", "output"),),
    read=read,
    about="prompt and answer; a list of texts in `output` are several accepted answers",
)
