"""How answers are sampled, and how far the predictions of two models differ on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Direction = Literal["reverse", "forward", "jsd"]
"""The divergence of a student q from a teacher p: KL(q || p), KL(p || q), or the mean of the divergences of
both from their mean."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        top_k: Number of most probable tokens from which a token is drawn.
        temperature: Divisor of the logits.
    """

    top_k: int = 20
    temperature: float = 1.0


def divergence(student: Tensor, teacher: Tensor, direction: Direction) -> Tensor:
    """Compute the divergence of a student q from a teacher p at each position.

        reverse  KL(q || p) = sum_v q_v log(q_v / p_v)
        forward  KL(p || q) = sum_v p_v log(p_v / q_v)
        jsd      KL(p || m) / 2 + KL(q || m) / 2,  m = (p + q) / 2

    Args:
        student: Logits, `(positions, vocabulary)`; the result is differentiable in them.
        teacher: Logits of the same positions.
        direction: Which of the three divergences.

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
    """Compute n_r / |y_r| sum_t D_t of each row r; a step's loss is their sum, divided by sum n_r.

    A row has the weight of its number of labels n_r, which is known for the whole step before any answer is
    sampled. So the loss does not depend on how a step is split into parts or processes.

    Args:
        students: For each row the student's logits at its answer's tokens, `(|y_r|, vocabulary)`.
        teachers: For each row the teacher's logits.
        labels: n_r of each row.
        direction: Which divergence.

    Returns:
        `(rows,)`.
    """
    rows = zip(students, teachers, labels, strict=True)
    return torch.stack([n * divergence(q, p, direction).mean() for q, p, n in rows])


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """Compute KL(p || q) from log-probabilities."""
    return functional.kl_div(q, p, reduction="none", log_target=True).sum(dim=-1)
