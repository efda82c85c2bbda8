"""Decides when an answer is a label, by the loosest comparison that keeps all labels of a task different."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from kifuse.scoring.identity import same_answer

# Punctuation that has a meaning inside a short label ("C#", "5%", "R&D"), so it is never removed.
_MEANINGFUL = frozenset("#%&@/\\")
# The point or minus sign of a number is part of it, not punctuation around it.
_NUMBER_SIGN = re.compile(r"(?:-\.?|\.)\d")


def normalise(text: str) -> str:
    """Bring a short answer to the form in which labels are compared if that form keeps them different.

    The form has lower case, composed letters, single spaces, and no spaces or punctuation at either end.
    Symbols that distinguish labels (``#``, ``%``, ``+``) stay, and so do the sign and point of a number. A
    text of only punctuation is kept.

    Args:
        text: The answer as generated or as given.

    Returns:
        Its normal form; normalising it again changes nothing.
    """
    lower = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).lower())
    collapsed = " ".join(lower.split())
    start, end = 0, len(collapsed)
    while start < end and _strips(collapsed[start]) and not _NUMBER_SIGN.match(collapsed, start):
        start += 1
    while end > start and _strips(collapsed[end - 1]):
        end -= 1
    return collapsed[start:end] or collapsed


@dataclass(frozen=True)
class Comparison:
    """How answers are compared.

    Args:
        same: Whether two texts are the same answer.
        why: What is compared, in a few words.
        labels: The labels of the task; none for free text.
        places: The position of each label in `labels`, by the label's form.
        form: The form in which labels are compared.
    """

    same: Callable[[str, str], bool]
    why: str
    labels: tuple[str, ...] = ()
    places: dict[str, int] | None = None
    form: Callable[[str], str] = normalise

    def label(self, answer: str) -> int | None:
        """Return the position of the label that an answer is; None if it is not a label."""
        return None if self.places is None else self.places.get(self.form(answer))

    def clash(self, prediction: str, references: Iterable[str]) -> bool:
        """Say whether a prediction is a label, but a different one from every reference."""
        found = self.label(prediction)
        return found is not None and all(
            self.label(reference) not in (found, None) for reference in references
        )


FREE_TEXT = Comparison(
    same_answer,
    "texts are the same except for letter case, spaces and ordinary punctuation at the ends; signs, "
    "symbols, accents and indentation count",
)
"""For tasks without labels."""

BY_ROW = (
    "the options of each row are its labels; letter case, spaces and punctuation at the ends count only if "
    "the options differ in nothing else"
)
"""For tasks whose rows have their own options."""


def comparison(labels: Sequence[str] | None, seen: Sequence[str] = ()) -> Comparison:
    """Choose how the answers of a task are compared.

    Args:
        labels: The labels of the task; None for free text.
        seen: Each label as the tokenizer decodes it, which differs where special tokens in it decode to
            nothing.

    Returns:
        The comparison. For labels it is the loosest of four that keeps all of them different: without letter
        case and punctuation at the ends; without letter case; with both; exactly as they are.
    """
    return _label_comparison(tuple(labels), tuple(seen)) if labels else FREE_TEXT


def comparison_why(labels: Sequence[str] | None) -> str:
    """Say in a sentence how the answers of a task are compared.

    Args:
        labels: The labels of the task; None for free text.

    Returns:
        The sentence, without a full stop.
    """
    return comparison(labels).why


@lru_cache(maxsize=64)
def _label_comparison(labels: tuple[str, ...], seen: tuple[str, ...]) -> Comparison:
    form, why = next(
        (form, why)
        for form, why in _LOOSEST_FIRST
        if len({form(label) for label in labels}) == len(set(labels))
    )
    places = {form(label): place for place, label in enumerate(labels)}
    for place, label in enumerate(seen):
        if label.strip():
            places.setdefault(form(label), place)

    def same(one: str, other: str) -> bool:
        if form(one) == form(other):
            return True
        place = places.get(form(one))
        return place is not None and place == places.get(form(other))

    return Comparison(same, why, labels, places, form)


def _strips(character: str) -> bool:
    if character in _MEANINGFUL:
        return False
    return character.isspace() or unicodedata.category(character).startswith("P")


def _with_punctuation(text: str) -> str:
    return unicodedata.normalize("NFC", _with_case(text).casefold())


def _with_case(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


_LOOSEST_FIRST: tuple[tuple[Callable[[str], str], str], ...] = (
    (normalise, "labels are the same except for letter case, spaces and punctuation at the ends"),
    (
        _with_punctuation,
        "labels are the same except for letter case and spaces; punctuation tells them apart",
    ),
    (_with_case, "labels are the same except for spaces; letter case tells them apart"),
    (str, "labels are compared exactly as they are"),
)
