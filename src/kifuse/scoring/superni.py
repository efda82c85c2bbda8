"""SuperNI's own evaluation, to the letter, by which SAPT's and both papers' SuperNI figures are computed.

    exact match   lower case, without ASCII punctuation, single spaces; then equal or not
    ROUGE-L       F of the longest common subsequence of stemmed words (rouge-score, Porter), as it stands

With several references the best counts, and a task's score is the mean over its examples. For tasks that are
not in English, GPT-2's tokens are used as words, without the marks of spaces. The reason: `rouge-score` only
knows ASCII letters, so with plain words any text in another script scores 0, even the right one.
"""

from __future__ import annotations

import string
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from kifuse.errors import DataError
from kifuse.scoring.labels import Comparison

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_SPACE = "Ġ"
"""The first character of GPT-2's tokens that follow a space."""


def exact_match(prediction: str, references: Iterable[str], compared: Comparison) -> float:
    """Score 1 when the normalised prediction equals a normalised reference."""
    return float(any(_normalised(prediction) == _normalised(each) for each in references))


def rouge_l(prediction: str, references: Iterable[str], compared: Comparison) -> float:
    """Score ROUGE-L of the best reference, with stemmed English words."""
    return _best(_stemming(), prediction, references)


def rouge_l_xlingual(prediction: str, references: Iterable[str], compared: Comparison) -> float:
    """Score ROUGE-L of the best reference, with GPT-2's tokens.

    Raises:
        DataError: For the reasons given in `gpt2`.
    """
    return _best(_of_tokens(), prediction, references)


@lru_cache(maxsize=1)
def gpt2() -> Any:
    """Load GPT-2's tokenizer.

    Raises:
        DataError: The tokenizer is not on this machine and cannot be fetched.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained("gpt2")
    except Exception as error:
        raise DataError(
            "The metric superni_rouge_l_xlingual splits texts with GPT-2's tokenizer, which could not be "
            f"loaded: {str(error).splitlines()[0]} Download it once with 'hf download gpt2', or use "
            "superni_rouge_l for tasks in English, or rouge_l."
        ) from error


class _Tokens:
    """GPT-2's tokens, in the form of a tokenizer for `rouge-score`."""

    def tokenize(self, text: str) -> list[str]:
        return [token.lstrip(_SPACE) for token in gpt2().tokenize(text)]


@lru_cache(maxsize=1)
def _stemming() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)


@lru_cache(maxsize=1)
def _of_tokens() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_Tokens())


def _best(scorer: Any, prediction: str, references: Iterable[str]) -> float:
    return max((scorer.score(each, prediction)["rougeL"].fmeasure for each in references), default=0.0)


def _normalised(text: str) -> str:
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split())
