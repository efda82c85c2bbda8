"""DER++ for language models, token by token: the loss of a batch of current and replayed examples."""

from __future__ import annotations

import math

from torch import Tensor


def probabilities(logits: Tensor) -> list[float]:
    """Softmax of one position."""
    top = max(logits.tolist())
    powers = [math.exp(value - top) for value in logits.tolist()]
    return [power / sum(powers) for power in powers]


def divergence(before: Tensor, now: Tensor, kept: int) -> float:
    """KL of the `kept` likeliest tokens of `before`, and of any other token as one outcome."""
    p, q = probabilities(before), probabilities(now)
    likely = sorted(range(len(p)), key=lambda token: -p[token])[:kept]
    pairs = [(p[token], q[token]) for token in likely]
    pairs.append((1.0 - sum(a for a, _ in pairs), 1.0 - sum(b for _, b in pairs)))
    return sum(a * math.log(a / b) for a, b in pairs if a > 0)


def loss(
    rows: list[tuple[Tensor, Tensor, Tensor | None]], kept: int, strength: float, label_weight: float
) -> float:
    """The mean over all target tokens.

    Args:
        rows: Of each example present logits (targets, vocabulary), gold tokens, and for one of the memory the
            logits of the model after the example's own task.
        kept: Tokens kept of a position.
        strength: lambda.
        label_weight: beta.
    """
    total, count = 0.0, 0
    for now, gold, before in rows:
        for place, token in enumerate(gold.tolist()):
            count += 1
            cross_entropy = -math.log(probabilities(now[place])[token])
            total += cross_entropy * (1.0 if before is None else label_weight)
            if before is not None:
                total += strength * divergence(before[place], now[place], kept)
    return total / count
