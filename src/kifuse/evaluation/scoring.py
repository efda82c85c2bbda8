"""Scores of one prediction, and of a set of them."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Protocol

from kifuse.errors import ConfigError, DataError, did_you_mean

# Punctuation that carries meaning inside a short label ("C#", "5%", "R&D"), so it is never stripped.
_MEANINGFUL = frozenset("#%&@/\\")
# The point or minus sign of a number is part of it, not punctuation around it.
_NUMBER_SIGN = re.compile(r"(?:-\.?|\.)\d")
_WORDS = re.compile(r"[^\W_]", re.UNICODE)


class HasReferences(Protocol):
    """Anything with accepted outputs, such as an Example."""

    @property
    def references(self) -> Sequence[str]:
        """The accepted outputs."""
        ...


def normalise(text: str) -> str:
    """Bring a short answer to the form in which answers are compared.

    Lower case, single spaces, and no spaces or punctuation at either end. Symbols that tell labels apart
    (``#``, ``%``, ``+``) stay, and so do the sign and point of a number; a text of punctuation only is kept.

    Args:
        text: The answer as generated or as given.

    Returns:
        Its normal form; normalising it again changes nothing.
    """
    collapsed = " ".join(text.lower().split())
    start, end = 0, len(collapsed)
    while start < end and _strips(collapsed[start]) and not _NUMBER_SIGN.match(collapsed, start):
        start += 1
    while end > start and _strips(collapsed[end - 1]):
        end -= 1
    return collapsed[start:end] or collapsed


def exact_match(prediction: str, references: Iterable[str]) -> float:
    """Score 1 when the prediction equals a reference after normalising both, else 0.

    Args:
        prediction: The generated text.
        references: The accepted answers.

    Returns:
        1.0 or 0.0.
    """
    found = normalise(prediction)
    return float(any(found == normalise(reference) for reference in references))


def rouge_l(prediction: str, references: Iterable[str]) -> float:
    """ROUGE-L F of the best reference, without stemming.

    The words are those of the ``rouge-score`` package (ASCII letters and digits). A reference written mostly
    in other letters is split at Unicode word borders instead, since nothing of it would be left.

    Args:
        prediction: The generated text.
        references: The accepted outputs.

    Returns:
        The score, from 0 to 1.
    """
    scores = [
        _rouge(_mostly_ascii(reference)).score(reference, prediction)["rougeL"].fmeasure
        for reference in references
    ]
    return max(scores, default=0.0)


def is_valid_label(prediction: str, labels: Iterable[str]) -> bool:
    """Say whether a prediction is one of the labels of its task, right or wrong.

    Args:
        prediction: The generated text.
        labels: All labels of the task.

    Returns:
        Whether it equals one of them after normalising.
    """
    found = normalise(prediction)
    return any(found == normalise(label) for label in labels)


def score_one(prediction: str, references: Iterable[str], metric: str) -> float:
    """Score one prediction.

    Args:
        prediction: The generated text.
        references: The accepted outputs.
        metric: "exact_match" or "rouge_l".

    Returns:
        The score, from 0 to 1.

    Raises:
        ConfigError: If there is no such metric.
    """
    if metric not in _METRICS:
        names = ", ".join(_METRICS)
        hint = did_you_mean(metric, _METRICS)
        raise ConfigError(f"metric: found '{metric}', expected one of {names}.{hint}")
    return _METRICS[metric](prediction, references)


def score(predictions: Sequence[str], examples: Sequence[HasReferences], metric: str) -> float:
    """Average the scores of a set of predictions.

    Args:
        predictions: The generated texts.
        examples: The examples they answer, in the same order.
        metric: "exact_match" or "rouge_l".

    Returns:
        The mean score, from 0 to 100.

    Raises:
        ConfigError: If there is no such metric.
        DataError: If there are no examples, or not one prediction for each.
    """
    if not examples:
        raise DataError("there are no examples to score; a score needs at least one.")
    if len(predictions) != len(examples):
        raise DataError(
            f"found {len(predictions)} predictions for {len(examples)} examples; expected one for each."
        )
    scores = [
        score_one(prediction, example.references, metric)
        for prediction, example in zip(predictions, examples, strict=True)
    ]
    return 100.0 * math.fsum(scores) / len(scores)


_METRICS = {"exact_match": exact_match, "rouge_l": rouge_l}


def _strips(character: str) -> bool:
    if character in _MEANINGFUL:
        return False
    return character.isspace() or unicodedata.category(character).startswith("P")


def _mostly_ascii(text: str) -> bool:
    letters = [character for character in text if character.isalpha()]
    return 2 * sum(character.isascii() for character in letters) >= len(letters)


class _UnicodeWords:
    """Words of any script; scripts written without spaces give one word for each character."""

    def tokenize(self, text: str) -> list[str]:
        words: list[str] = []
        joined = False
        for character in unicodedata.normalize("NFC", text.lower()):
            mark = unicodedata.category(character).startswith("M")
            if not mark and not _WORDS.match(character):
                joined = False
                continue
            # Category Lo holds the letters without case, Chinese and Japanese among them.
            alone = unicodedata.east_asian_width(character) in "WF"
            if words and (mark or (joined and not alone)):
                words[-1] += character
            else:
                words.append(character)
            joined = not alone
        return words


@lru_cache(maxsize=2)
def _rouge(ascii_words: bool) -> Any:
    # Imported late: the package pulls in several others that most runs never need.
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=False, tokenizer=None if ascii_words else _UnicodeWords())
