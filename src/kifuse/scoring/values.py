"""Compares answers that are JSON, numbers or code by their values instead of as text."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any, NamedTuple

import regex

from kifuse.scoring.identity import answer_form, same_answer
from kifuse.scoring.labels import Comparison

CLOSE = 1e-6
"""Two numbers are the same if they differ by at most this share of the larger; whole numbers must be
equal."""

_NUMBER = regex.compile(
    r"""(?V1)(?<![\p{L}\p{N}_.,])
    (?P<sign>[-+]?)\ ?(?P<currency>\p{Sc}?)\ ?
    (?P<digits>(?:\p{Nd}{1,3}(?:,\p{Nd}{3})+|\p{Nd}+)(?:\.\p{Nd}+)?|\.\p{Nd}+)
    (?P<exponent>[eE][-+]?\p{Nd}{1,3})?
    (?:/(?P<below>\p{Nd}+))?
    \ ?(?P<unit>[%‰'"′″°]|\p{Sc})?
    (?![\p{L}\p{N}_]|[.,/:]\p{N})""",
    regex.VERBOSE,
)
# A text with one of these beside its number says something else about the number ("< 5", "±5").
_RELATION = regex.compile(r"(?V1)[\p{S}--[=\p{Sc}]]")
_MINUS = str.maketrans({"−": "-", "﹣": "-", "－": "-"})
_MOST_DIGITS = 400


class _Number(NamedTuple):
    value: Fraction
    whole: bool
    unit: str


def json_equal(prediction: str, references: Iterable[str], compared: Comparison) -> float:
    """Score 1 when the prediction is the same JSON value as a reference, or the same text, else 0."""
    return _any(_same_json, prediction, references)


def number_close(prediction: str, references: Iterable[str], compared: Comparison) -> float:
    """Score 1 when the prediction's number is the number of a reference, else 0.

    Whole numbers must be equal, other numbers must be within a millionth of each other. ``1,000`` is 1000,
    ``5%`` is 0.05 and ``1/4`` is 0.25. Signs of currencies or units must agree if both have one. The
    prediction may have words around its number, but no second number. A reference that is not a number is
    compared as free text.
    """
    return _any(_same_number, prediction, references)


def code_equal(prediction: str, references: Iterable[str], compared: Comparison) -> float:
    """Score 1 when the prediction is a reference except for white space at line ends and around the text."""
    return _any(lambda one, other: _code_form(one) == _code_form(other), prediction, references)


def _any(same: Callable[[str, str], bool], prediction: str, references: Iterable[str]) -> float:
    return float(any(prediction == reference or same(prediction, reference) for reference in references))


def _same_json(one: str, other: str) -> bool:
    if one.strip() == other.strip():
        return True
    try:
        return _typed(json.loads(one)) == _typed(json.loads(other))
    except (ValueError, RecursionError):
        return False


def _typed(value: Any) -> Any:
    """Mark the type of JSON values so that true differs from 1; 1 and 1.0 stay the same number."""
    if isinstance(value, dict):
        return {key: _typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_typed(item) for item in value]
    return (type(value) is bool, value)


def _same_number(one: str, other: str) -> bool:
    if same_answer(one, other):
        return True
    wanted = _read(other, alone=True)
    found = None if wanted is None else _read(one, alone=False)
    if wanted is None or found is None:
        return False
    if wanted.unit and found.unit and wanted.unit != found.unit:
        return False
    if wanted.whole and found.whole:
        return wanted.value == found.value
    return abs(wanted.value - found.value) <= Fraction(CLOSE) * max(abs(wanted.value), abs(found.value))


def _read(text: str, *, alone: bool) -> _Number | None:
    """The one number in a text; with `alone` the text may have only ordinary punctuation beside it."""
    text = answer_form(text.translate(_MINUS))
    found = list(_NUMBER.finditer(text))
    if len(found) != 1:
        return None
    match = found[0]
    beside = text[: match.start()] + text[match.end() :]
    if _RELATION.search(beside) or any(character.isnumeric() for character in beside):
        return None
    if alone and beside.strip():
        return None
    digits = match["digits"].replace(",", "")
    if len(digits) > _MOST_DIGITS or len(match["below"] or "") > _MOST_DIGITS:
        return None
    value = Fraction(_ascii(digits) + _ascii(match["exponent"] or ""))
    if match["below"]:
        if int(match["below"]) == 0:
            return None
        value /= int(match["below"])
    unit = match["unit"] or ""
    value /= {"%": 100, "‰": 1000}.get(unit, 1)
    measured_in = match["currency"] or (unit if unit not in "%‰" else "")
    whole = digits.isdecimal() and not match["exponent"] and not match["below"]
    return _Number(-value if match["sign"] == "-" else value, whole, measured_in)


def _ascii(digits: str) -> str:
    return "".join(str(unicodedata.digit(each)) if each.isdigit() else each for each in digits)


def _code_form(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())
