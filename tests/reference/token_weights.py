"""Losses with weights for tokens, computed token by token."""

from __future__ import annotations

import math

from torch import Tensor

from tests.reference.derpp import probabilities
from tests.reference.lwf import distillation


def weight(logits: Tensor, gold: int, weigh_by: str, power: float) -> float:
    """Compute the weight of one position."""
    found = probabilities(logits)
    if weigh_by == "probability":
        return float(found[gold]) ** power
    best = sorted((float(p) for p in found), reverse=True)[:20]
    best = [p / sum(best) for p in best]
    return (-sum(p * math.log(p) for p in best if p) / 3.0) ** power


def loss(rows: list[tuple[Tensor, Tensor, Tensor]], weigh_by: str, power: float, anchor: float) -> float:
    """Compute the mean over all target tokens; `rows` is as in `tests.reference.lwf.loss`."""
    total, count = 0.0, 0
    for now, gold, before in rows:
        for place, token in enumerate(gold.tolist()):
            count += 1
            total -= weight(now[place], token, weigh_by, power) * math.log(probabilities(now[place])[token])
            total += anchor * distillation(before[place], now[place], 1.0)
    return total / count
