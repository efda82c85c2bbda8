"""Scoring: when two answers are the same, the metrics by name, and the score of a set of answers."""

from kifuse.scoring.identity import same_answer
from kifuse.scoring.labels import comparison_why
from kifuse.scoring.metrics import METRICS
from kifuse.scoring.own_function import register_metric
from kifuse.scoring.scores import score, score_all, score_one

__all__ = [
    "METRICS",
    "comparison_why",
    "register_metric",
    "same_answer",
    "score",
    "score_all",
    "score_one",
]
