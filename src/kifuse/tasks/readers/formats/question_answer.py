"""Questions and answers as in benchmarks, optionally about a text."""

from __future__ import annotations

from kifuse.tasks.readers.formats.form import Asked, Format
from kifuse.tasks.readers.long_sequence import part_cue
from kifuse.tasks.readers.rows import Row


def read(row: Row, instructed: bool) -> Asked:
    """Read a question with its answers; a text that the question is about is put before it."""
    asked = "question" if "question" in row.values else "prompt"
    answer = next(name for name in ("answer", "answers", "response") if name in row.values)
    values = dict(row.values)
    if isinstance(values[answer], dict) and "text" in values[answer]:  # SQuAD adds positions
        values[answer] = values[answer]["text"]
    if isinstance(values[answer], list):  # annotators often agree: drop repeated answers
        texts = [text for text in values[answer] if isinstance(text, str)]
        values[answer] = list(dict.fromkeys(texts)) if len(texts) == len(values[answer]) else values[answer]
    row = Row(row.where, values)
    question = row.get_text(asked, empty=instructed)
    if row.filled("context"):
        question = f"{row.get_text('context')}\n\n{question}"
    body, tail = part_cue(question)
    return Asked(body, row.get_references(answer), answer, tail=tail, instruction=row.instruction())


FORMAT = Format(
    "question_answer",
    needs=(("question", "answer"), ("question", "answers"), ("prompt", "answer"), ("prompt", "response")),
    read=read,
    may=("context",),
    about="SQuAD, GSM8K, TRACE: `context`, if there is one, stands before the question",
)
