"""How answers are sampled, and how far two models differ over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Direction = Literal["reverse", "forward", "jsd"]
"""Of a student q from a teacher p: KL(q || p), KL(p || q), or the mean of both from their mean."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        top_k: From how many of the likeliest tokens.
        temperature: What the logits are divided by.
    """

    top_k: int = 20
    temperature: float = 1.0


def divergence(student: Tensor, teacher: Tensor, direction: Direction) -> Tensor:
    """The divergence of a student q from a teacher p at each position.

        reverse  KL(q || p) = sum_v q_v log(q_v / p_v)
        forward  KL(p || q) = sum_v p_v log(p_v / q_v)
        jsd      KL(p || m) / 2 + KL(q || m) / 2,  m = (p + q) / 2

    Args:
        student: Logits, `(positions, vocabulary)`; the result is differentiable in them.
        teacher: Logits of the same positions.
        direction: Which one.

    Returns:
        `(positions,)`.
    """
    q, p = student.log_softmax(dim=-1), teacher.log_softmax(dim=-1)
    if direction == "reverse":
        return _kl(q, p)
    if direction == "forward":
        return _kl(p, q)
    mean = torch.logaddexp(p, q) - torch.log(torch.tensor(2.0, device=p.device))
    return (_kl(p, mean) + _kl(q, mean)) / 2


def mean_by_rows(
    students: Sequence[Tensor], teachers: Sequence[Tensor], labels: Sequence[int], direction: Direction
) -> Tensor:
    """n_r / |y_r| sum_t D_t of each row r; a step's loss is the sum over its rows, divided by sum n_r.

    A row counts by its number of labels n_r, which is known of the whole step before any answer is sampled.
    So neither the parts of a step nor the processes change the loss.

    Args:
        students: Of each row the logits at its answer's tokens, `(|y_r|, vocabulary)`.
        teachers: Of each row the teacher's.
        labels: n_r of each.
        direction: Which divergence.

    Returns:
        `(rows,)`.
    """
    rows = zip(students, teachers, labels, strict=True)
    return torch.stack([n * divergence(q, p, direction).mean() for q, p, n in rows])


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of log-probabilities."""
    return functional.kl_div(q, p, reduction="none", log_target=True).sum(dim=-1)
