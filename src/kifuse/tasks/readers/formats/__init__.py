"""Formats of rows: one file for each format; a row's format is recognised from its field names."""

from __future__ import annotations

from collections.abc import Collection

from kifuse.errors import DataError, did_you_mean
from kifuse.tasks.readers.formats import (
    alpaca,
    classified,
    conversations,
    input_output,
    messages,
    prompt_completion,
    question_answer,
    text,
)
from kifuse.tasks.readers.formats.form import COMMON, Asked, Format
from kifuse.tasks.readers.rows import Row

FORMATS: tuple[Format, ...] = (
    messages.FORMAT,
    conversations.FORMAT,
    prompt_completion.FORMAT,
    alpaca.FORMAT,
    input_output.FORMAT,
    question_answer.FORMAT,
    classified.FORMAT,
    text.FORMAT,
)
"""The formats in the order in which they are tried: the first one whose fields a row has is the row's
format."""

KNOWN_FIELDS: tuple[str, ...] = tuple(
    dict.fromkeys([*(name for format in FORMATS for name in format.fields), *COMMON])
)
"""Every field that a format reads."""

__all__ = ["COMMON", "FORMATS", "KNOWN_FIELDS", "Asked", "Format", "format_of"]


def format_of(row: Row, name: str | None, way: str) -> tuple[Format, tuple[str, ...]]:
    """Recognise the format of a row.

    Args:
        row: The row; empty fields do not count if fields with values already fit a format.
        name: The format's name, if the user gives it.
        way: How the user may say what the fields contain, for the message.

    Returns:
        The format, and the fields that it needs and the row has.

    Raises:
        DataError: The row has the fields of no format; the message names the most similar one.
    """
    candidates = [format for format in FORMATS if name in (None, format.name)]
    filled = [key for key, value in row.values.items() if value not in (None, "", [])]
    for fields in (filled, list(row.values)):
        for format in candidates:
            if not format.never & row.values.keys() and (found := format.detect(fields)) is not None:
                return format, found
    raise DataError(_missing(row, candidates, way))


def _missing(row: Row, candidates: Collection[Format], way: str) -> str:
    """Name the field that the most similar format lacks; between equals, kifuse's own format wins."""
    fields = list(row.values)
    found = ", ".join(f"'{field}'" for field in fields[:20]) or "none"
    needs = {need: format.name == "input_output" for format in candidates for need in format.needs}
    lacking = [need for need in needs if not set(need) <= set(fields)]
    nearest = max(lacking, key=lambda need: (sum(name in fields for name in need) / len(need), needs[need]))
    missing = next(name for name in nearest if name not in fields)
    known = ""
    if {"chosen", "rejected"} <= set(fields):
        known = ' To learn the chosen answers of preference pairs: columns: {"completion": "chosen"}.'
    elif not set(nearest) & set(fields) and len(candidates) > 1:
        known = f" Known are: {'; '.join(' and '.join(format.needs[0]) for format in candidates)}."
    return (
        f"{row.where}: the field {row.called(missing)} is missing, expected text; found the fields: {found}."
        f"{did_you_mean(missing, fields)}{known} {way}"
    )
