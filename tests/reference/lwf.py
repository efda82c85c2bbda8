"""LwF for language models, token by token."""

from __future__ import annotations

import math

from torch import Tensor

from tests.reference.derpp import probabilities


def distillation(before: Tensor, now: Tensor, temperature: float) -> float:
    """Compute T^2 KL(before || now) of one position."""
    p, q = probabilities(before / temperature), probabilities(now / temperature)
    return temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def loss(rows: list[tuple[Tensor, Tensor, Tensor]], strength: float, temperature: float) -> float:
    """Compute the mean over all target tokens.

    Args:
        rows: For each example the student's logits (targets, vocabulary), gold tokens, and teacher's logits.
        strength: lambda.
        temperature: T.
    """
    total, count = 0.0, 0
    for now, gold, before in rows:
        for place, token in enumerate(gold.tolist()):
            count += 1
            total -= math.log(probabilities(now[place])[token])
            total += strength * distillation(before[place], now[place], temperature)
    return total / count
