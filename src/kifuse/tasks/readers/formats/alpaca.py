"""Instruction data as in Alpaca and LLaMA-Factory, optionally with a system text and a history."""

from __future__ import annotations

from typing import Any

from kifuse.errors import DataError
from kifuse.tasks.readers.chat import written
from kifuse.tasks.readers.formats.form import Asked, Format
from kifuse.tasks.readers.long_sequence import part_cue
from kifuse.tasks.readers.rows import Row, checked_text, kind_of


def read(row: Row, instructed: bool) -> Asked:
    """Read a row as a chat: system, history, then instruction and input as two lines of the user's turn."""
    asked = "query" if "query" in row.values and "instruction" not in row.values else "instruction"
    answer = "output" if "output" in row.values else "response"
    instruction = row.get_text(asked) if row.filled(asked) else None
    key = "input" if "input" in row.values or "context" not in row.values else "context"
    text = "" if not row.filled(key) else row.get_text(key, empty=True)
    if instruction is None and not instructed:
        text = row.get_text(key)
    references = row.get_references(answer)
    system = row.get_text("system") if row.filled("system") else None
    past = _history(row) if row.filled("history") else []
    before: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    before += past
    body, tail = part_cue(text)
    messages = [
        *before,
        {"role": "user", "content": text},
        {"role": "assistant", "content": references[0]},
    ]
    at = len(before)
    lead = f"{system}\n\n" if system else ""
    if past:
        if not text.strip():
            # the instruction itself is the user's turn, so it is put at that turn's place in the chat
            messages[at]["content"], instruction = instruction or "", None
        lead, body, tail, _ = written(messages)
    elif asked == "query" and not text:
        body, instruction = instruction or "", None
        messages[at]["content"] = body
    return Asked(
        body,
        references,
        answer,
        lead=lead,
        tail=tail,
        instruction=instruction,
        messages=messages,
        head_at=at,
    )


def _history(row: Row) -> list[dict[str, Any]]:
    found = row.values["history"]
    if not isinstance(found, list):
        raise DataError(f"{row.where}: 'history' is {kind_of(found)}, expected a list of pairs of texts.")
    turns = []
    for number, pair in enumerate(found, 1):
        what = f"'history' entry {number}"
        if not isinstance(pair, list) or len(pair) != 2:
            raise DataError(
                f"{row.where}: {what} is {kind_of(pair)}, expected two texts: what the user said and what "
                f"was answered."
            )
        for role, content in zip(("user", "assistant"), pair, strict=True):
            turns.append({"role": role, "content": checked_text(content, row.where, what)})
    return turns


FORMAT = Format(
    "alpaca",
    needs=(
        ("instruction", "output"),
        ("system", "output"),
        ("history", "output"),
        ("instruction", "response"),
        ("query", "response"),
    ),
    read=read,
    may=("input", "context", "system", "history", "instruction"),
    about="Alpaca, LLaMA-Factory, Dolly: system, history, then instruction and input as the user's turn",
)
