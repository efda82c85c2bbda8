"""Metrics of free text: how much of a reference a prediction contains, by published definitions.

All follow one rule: the same answer scores 1, any other answer scores the value of the published metric. If
that value is 1 although a difference matters (a sign, a symbol, the order of words), a finer comparison gives
less than 1.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

from kifuse.scoring.identity import likeness
from kifuse.scoring.labels import Comparison
from kifuse.scoring.words import fine_words, spaced, words

_FULL = 1.0 - 1e-9
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
# The package wants a tokenizer that splits the text; here the words are already split and joined by this.
_GAP = "\x1f"


def exact_match(prediction: str, references: Iterable[str], compared: Comparison) -> float:
    """Score 1 when the prediction is the same answer as a reference, else 0."""
    return float(any(compared.same(prediction, reference) for reference in references))


def rouge(kind: str) -> Callable[[str, Iterable[str], Comparison], float]:
    """Make a metric: ROUGE F of the best reference, without stemming, with words of any script.

    Args:
        kind: ``"rouge1"``, ``"rouge2"`` or ``"rougeL"``, as the ``rouge-score`` package names them.

    Returns:
        A function of prediction, references and comparison that gives a score from 0 to 1.
    """

    def value(prediction: Sequence[str], reference: Sequence[str]) -> float:
        return _rouge(kind).score(_GAP.join(reference), _GAP.join(prediction))[kind].fmeasure

    def pair(prediction: str, reference: str, compared: Comparison) -> float:
        if compared.same(prediction, reference):
            return 1.0
        found = value(words(prediction), words(reference))
        return found if found < _FULL else _finer(prediction, reference, value, compared)

    return _best(pair)


def token_f1(prediction: str, references: Iterable[str], compared: Comparison) -> float:
    """Score the word overlap with the best reference: F1 as in SQuAD, without articles and punctuation."""
    return _best(_token_f1)(prediction, references, compared)


def bleu(prediction: str, references: Iterable[str], compared: Comparison) -> float:
    """Score one prediction by sentence BLEU against all references."""
    return _of_sentence(_bleu, prediction, list(references), compared)


def chrf(prediction: str, references: Iterable[str], compared: Comparison) -> float:
    """Score one prediction by sentence chrF against the best reference."""
    return _of_sentence(_chrf, prediction, list(references), compared)


def whole_bleu(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    compared: Comparison,
    points: Sequence[float],
) -> float:
    """Score a set of predictions by corpus BLEU, from 0 to 1; `points` are the single scores."""
    return _of_corpus(_bleu(), predictions, references, compared, points)


def whole_chrf(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    compared: Comparison,
    points: Sequence[float],
) -> float:
    """Score a set of predictions by corpus chrF, from 0 to 1; `points` are the single scores."""
    return _of_corpus(_chrf(), predictions, references, compared, points)


def squad_words(text: str) -> list[str]:
    """Split a text into words as SQuAD's evaluation does: lower case, without punctuation and articles.

    Args:
        text: Any text.

    Returns:
        The words; in scripts without spaces each letter is one word.
    """
    return spaced(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION))).split()


def _best(
    pair: Callable[[str, str, Comparison], float],
) -> Callable[[str, Iterable[str], Comparison], float]:
    def score(prediction: str, references: Iterable[str], compared: Comparison) -> float:
        return max((pair(prediction, reference, compared) for reference in references), default=0.0)

    return score


def _token_f1(prediction: str, reference: str, compared: Comparison) -> float:
    if compared.same(prediction, reference):
        return 1.0
    found = _f1(squad_words(prediction), squad_words(reference))
    return found if found < _FULL else _finer(prediction, reference, _f1_but_articles, compared)


def _f1(prediction: Sequence[str], reference: Sequence[str]) -> float:
    common = sum((Counter(prediction) & Counter(reference)).values())
    return 2.0 * common / (len(prediction) + len(reference)) if common else 0.0


def _f1_but_articles(prediction: Sequence[str], reference: Sequence[str]) -> float:
    return _f1(_but_articles(prediction), _but_articles(reference))


def _but_articles(parts: Sequence[str]) -> tuple[str, ...]:
    return tuple(word for word in parts if not _ARTICLES.fullmatch(word))


def _finer(
    prediction: str,
    reference: str,
    value: Callable[[Sequence[str], Sequence[str]], float],
    compared: Comparison,
) -> float:
    """Compare finer when the words alone give 1 although it is not the same answer.

    The value stays 1 if only punctuation between the words of a sentence differs (for F1 also articles).
    """
    if compared.clash(prediction, [reference]):
        return 0.0
    mine, theirs = fine_words(prediction), fine_words(reference)
    found = value(mine, theirs)
    if found < _FULL:
        return found
    if value is _f1_but_articles:
        mine, theirs = _but_articles(mine), _but_articles(theirs)
    return 1.0 if mine == theirs else min(likeness(prediction, reference), _FULL)


def _of_sentence(
    scorer: Callable[[], Any], prediction: str, references: list[str], compared: Comparison
) -> float:
    if exact_match(prediction, references, compared):
        return 1.0
    found = scorer().sentence_score(spaced(prediction), [spaced(each) for each in references]).score / 100.0
    if found < _FULL:
        return found
    if compared.clash(prediction, references):
        return 0.0
    return min(max(likeness(prediction, reference) for reference in references), _FULL)


def _of_corpus(
    scorer: Any,
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    compared: Comparison,
    points: Sequence[float],
) -> float:
    """The package's score of a set; each right answer is first replaced by its reference's spelling."""
    if all(point == 1.0 for point in points):
        return 1.0
    written = []
    for prediction, accepted in zip(predictions, references, strict=True):
        same = next((each for each in accepted if compared.same(prediction, each)), prediction)
        written.append(spaced(same))
    most = max(len(accepted) for accepted in references)
    columns = [
        [spaced(accepted[n]) if n < len(accepted) else None for accepted in references] for n in range(most)
    ]
    found = scorer.corpus_score(written, columns).score / 100.0
    return found if found < _FULL else sum(points) / len(points)


class _GivenWords:
    """A tokenizer for the package: the words are already split."""

    def tokenize(self, text: str) -> list[str]:
        return text.split(_GAP) if text else []


@lru_cache(maxsize=3)
def _rouge(kind: str) -> Any:
    # Imported late: the package imports several others that most runs never need.
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([kind], use_stemmer=False, tokenizer=_GivenWords())


@lru_cache(maxsize=1)
def _bleu() -> Any:
    from sacrebleu.metrics.bleu import BLEU

    # The effective order only changes sets of very short texts, which have no four words in a row.
    return BLEU(effective_order=True, force=True)


@lru_cache(maxsize=1)
def _chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()
