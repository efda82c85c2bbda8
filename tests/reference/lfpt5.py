"""A literal computation of LFPT5's loss of one step, one row and one token at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Row:
    """The logits of a model for one row.

    Attributes:
        kind: `task`, `pseudo` or `lesson`.
        logits: The logits at each target position, `(targets, vocabulary)`.
        before: The same from the model before the task.
        gold: The target tokens.
    """

    kind: str
    logits: Tensor
    before: Tensor
    gold: list[int]


def _log_p(logits: Tensor) -> list[float]:
    values = [float(v) for v in logits]
    norm = math.log(sum(math.exp(v) for v in values))
    return [v - norm for v in values]


def loss(rows: list[Row], lessons: float, mu: float) -> float:
    """Compute (1 - mu) (L_task + lambda_lm L_lm) + mu L_kd."""
    task: list[float] = []
    lm: list[float] = []
    kd = 0.0
    for row in rows:
        for logits, before, gold in zip(row.logits, row.before, row.gold, strict=True):
            now, old = _log_p(logits), _log_p(before)
            (lm if row.kind == "lesson" else task).append(-now[gold])
            if row.kind == "pseudo":
                kd += sum(math.exp(q) * (q - p) for p, q in zip(now, old, strict=True))
    of_lessons = sum(lm) / len(lm) if lm else 0.0
    return (1 - mu) * (sum(task) / len(task) + lessons * of_lessons) + mu * kd
