"""Decides when two texts are the same answer, as a person would say."""

from __future__ import annotations

import unicodedata
from difflib import SequenceMatcher
from functools import lru_cache

import regex

_ENDS = r".,!?;:…。．，、！？；：؟،؛।॥"
_QUOTES = "\"'«»‹›„‚「」『』"
# Quotation marks of any shape count as the two on a keyboard.
_PLAIN_QUOTES = str.maketrans("‘’“”", "''\"\"")
# `...and` and `¿Qué` lose the marks before the first word; `.5`, `.net` and `!x` do not.
_BEFORE = regex.compile(rf"(?:[{_ENDS}]+(?=\s)|\.\.+|…+|[¿¡]+|[{_QUOTES}]+)\s*")
# The marks after the number in `5'` and `5"` are its unit.
_AFTER = regex.compile(rf"\s*(?:[{_ENDS}]+|(?<!\d)[{_QUOTES}]+)\Z")
_AROUND = regex.compile(
    r"(?s)\*\*(?P<in>[^*]+)\*\*\Z|\*(?P<in>[^*\s]|[^*\s][^*]*[^*\s])\*\Z|__(?P<in>[^_]+)__\Z"
    rf"|_(?P<in>[^_\s]|[^_\s][^_]*[^_\s])_\Z|\((?P<in>[^()]+)\)\Z|[{_QUOTES}](?P<in>[^{_QUOTES}]+)[{_QUOTES}]\Z"
)


def same_answer(one: str, other: str) -> bool:
    """Say whether two free texts are the same answer.

    They are the same when they differ only in letter case, white space around them, the number of spaces
    between words, empty lines, the shape of quotation marks, ordinary punctuation at the ends (full stops,
    commas, question and exclamation marks, quotation marks, emphasis or brackets around the whole text), or
    in how Unicode composes a letter. Differences in signs, symbols, accents, digits of any script, and the
    indentation of lines after the first do count.

    Args:
        one: A text.
        other: Another text.

    Returns:
        Whether they are the same; `same_answer(a, b)` and `same_answer(b, c)` give `same_answer(a, c)`.
    """
    return one == other or answer_form(one) == answer_form(other)


@lru_cache(maxsize=4096)
def answer_form(text: str) -> str:
    """Bring a free text to the form in which answers are compared.

    Args:
        text: The text as generated or as given.

    Returns:
        Its form, which is equal for all texts that are the same answer. A text of only punctuation keeps it.
    """
    composed = unicodedata.normalize("NFC", text).translate(_PLAIN_QUOTES)
    lines = []
    for line in unicodedata.normalize("NFC", composed.casefold()).splitlines():
        words = line.split()
        if words:
            indent = line[: len(line) - len(line.lstrip())] if lines else ""
            lines.append(indent + " ".join(words))
    whole = "\n".join(lines)
    while whole and (shorter := _shortened(whole)) and shorter != whole:
        whole = shorter
    return whole


def likeness(one: str, other: str) -> float:
    """Measure how similar the forms of two texts are, character by character.

    Args:
        one: A text.
        other: Another text.

    Returns:
        From 0 to 1; 1 only if they are the same answer.
    """
    return SequenceMatcher(None, answer_form(one), answer_form(other), autojunk=False).ratio()


def _shortened(text: str) -> str:
    around = _AROUND.match(text)
    if around and (inside := around["in"].strip()):
        return inside
    shorter = _AFTER.sub("", text)
    if shorter and (before := _BEFORE.match(shorter)):
        shorter = shorter[before.end() :]
    return shorter
