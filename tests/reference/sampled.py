"""Divergences of a student from a teacher, computed token by token."""

from __future__ import annotations

import math

from torch import Tensor

from tests.reference.derpp import probabilities


def divergence(student: Tensor, teacher: Tensor, direction: str) -> float:
    """Compute the divergence at one position from the logits of both."""
    q, p = probabilities(student), probabilities(teacher)
    if direction == "reverse":
        return _kl(q, p)
    if direction == "forward":
        return _kl(p, q)
    mean = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return 0.5 * _kl(p, mean) + 0.5 * _kl(q, mean)


def _kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
