"""The metrics by name: their titles, their meanings, and how they score."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from kifuse.errors import DataError, did_you_mean
from kifuse.scoring import free_text, superni, values
from kifuse.scoring.labels import Comparison
from kifuse.scoring.over_labels import whole_macro_f1
from kifuse.scoring.own_function import is_own, register_metric

Points = Callable[[str, Iterable[str], Comparison], float]
Whole = Callable[[Sequence[str], Sequence[Sequence[str]], Comparison, Sequence[float]], float]


@dataclass(frozen=True)
class Metric:
    """One way to score answers.

    Args:
        name: Its name in a configuration.
        title: Its name in a sentence.
        meaning: What it measures, in one line.
        points: The score of one prediction, from 0 to 1; None if the answers do not matter.
        whole: The score of a set, from 0 to 1, if it is not the mean of the points.
        as_text: Whether answers are compared as texts or labels, not as values of another kind.
        to_the_letter: Whether it is a published evaluation exactly as published, even where that gives a
            right answer less than the full score, or a wrong answer the full score.
    """

    name: str
    title: str
    meaning: str
    points: Points | None
    whole: Whole | None = None
    as_text: bool = True
    to_the_letter: bool = False

    @property
    def over_set(self) -> bool:
        """Whether the score is computed over the whole test set and is not a mean over its examples."""
        return self.whole is not None or self.points is None


METRICS: dict[str, Metric] = {
    each.name: each
    for each in (
        Metric(
            "exact_match",
            "exact match",
            "the same answer as a reference, except for letter case, spaces and punctuation at the ends",
            free_text.exact_match,
        ),
        Metric(
            "token_f1",
            "token F1",
            "overlap of words with the best reference, as in SQuAD: articles and punctuation do not count",
            free_text.token_f1,
        ),
        Metric(
            "rouge_1",
            "ROUGE-1",
            "F of single words with the best reference (rouge-score, no stemming)",
            free_text.rouge("rouge1"),
        ),
        Metric(
            "rouge_2",
            "ROUGE-2",
            "F of pairs of words with the best reference (rouge-score, no stemming)",
            free_text.rouge("rouge2"),
        ),
        Metric(
            "rouge_l",
            "ROUGE-L",
            "F of the longest common sequence of words with the best reference (rouge-score, no stemming)",
            free_text.rouge("rougeL"),
        ),
        Metric(
            "superni_rouge_l",
            "SuperNI's ROUGE-L",
            "SuperNI's own evaluation: stemmed English words, the best reference; 0 for other scripts",
            superni.rouge_l,
            to_the_letter=True,
        ),
        Metric(
            "superni_rouge_l_xlingual",
            "SuperNI's ROUGE-L (tokens)",
            "SuperNI's own evaluation of tasks that are not in English: tokens of GPT-2, the best reference",
            superni.rouge_l_xlingual,
            to_the_letter=True,
        ),
        Metric(
            "superni_exact_match",
            "SuperNI's exact match",
            "SuperNI's own evaluation: equal in lower case, without punctuation, with single spaces",
            superni.exact_match,
            to_the_letter=True,
        ),
        Metric(
            "bleu",
            "BLEU",
            "BLEU of the test set against all references (sacrebleu, 13a)",
            free_text.bleu,
            free_text.whole_bleu,
        ),
        Metric(
            "chrf",
            "chrF",
            "chrF of the test set: runs of up to six characters (sacrebleu)",
            free_text.chrf,
            free_text.whole_chrf,
        ),
        Metric("accuracy", "accuracy", "share of answers that are the right label", free_text.exact_match),
        Metric(
            "macro_f1",
            "macro F1",
            "F1 of each label in the test set, averaged (scikit-learn); an answer that is not a label "
            "is wrong",
            free_text.exact_match,
            whole_macro_f1,
        ),
        Metric(
            "json",
            "JSON equality",
            "the same JSON value: order of keys and spaces do not count",
            values.json_equal,
            as_text=False,
        ),
        Metric(
            "number",
            "numeric closeness",
            "the same number: whole numbers exactly, others within a millionth; 1,000 is 1000 and 5% is 0.05",
            values.number_close,
            as_text=False,
        ),
        Metric(
            "code",
            "code equality",
            "the same text except for white space at line ends and at the start; indentation counts",
            values.code_equal,
            as_text=False,
        ),
        Metric(
            "perplexity",
            "100 / perplexity",
            "100 divided by the perplexity of the reference text: 100 when each token is certain",
            None,
            as_text=False,
        ),
    )
}
"""Every metric that has a name; a user's own function is named ``module:function``."""


def metric_name(metric: Any) -> str:
    """Check a metric and return its name.

    Args:
        metric: A name, or a function of the caller's own; only the caller names code. A name from a data
            folder must pass `refuse_unnamed` first.

    Returns:
        The metric's name.

    Raises:
        DataError: There is no metric of that name, or the function cannot be used.
    """
    if callable(metric):
        return register_metric(metric)
    if not isinstance(metric, str) or not (metric in METRICS or is_own(metric)):
        raise DataError(
            f"metric is {metric!r}, expected one of {', '.join(METRICS)}, or a function of your own, "
            f"'module:function'.{did_you_mean(str(metric), METRICS)}"
        )
    return metric if metric in METRICS else register_metric(metric)


def metric_title(name: str) -> str:
    """The name of a metric in a sentence, such as ``ROUGE-L``; a user's own function keeps its name."""
    return METRICS[name].title if name in METRICS else name


def metric_titles(names: Collection[str]) -> list[str]:
    """The titles of several metrics, without repeats, in their order."""
    return list(dict.fromkeys(metric_title(name) for name in names))


def needs_answers(name: str) -> bool:
    """Say whether a metric scores generated answers; perplexity does not."""
    return name not in METRICS or METRICS[name].points is not None
