"""DER++ for language models, token by token: the loss of a batch of current and replayed examples."""

from __future__ import annotations

import math

from torch import Tensor


def probabilities(logits: Tensor) -> list[float]:
    """Compute the softmax of one position."""
    top = max(logits.tolist())
    powers = [math.exp(value - top) for value in logits.tolist()]
    return [power / sum(powers) for power in powers]


def divergence(before: Tensor, now: Tensor, kept: int) -> float:
    """Compute KL over the `kept` likeliest tokens of `before`, with all other tokens as one outcome."""
    p, q = probabilities(before), probabilities(now)
    likely = sorted(range(len(p)), key=lambda token: -p[token])[:kept]
    pairs = [(p[token], q[token]) for token in likely]
    pairs.append((1.0 - sum(a for a, _ in pairs), 1.0 - sum(b for _, b in pairs)))
    return sum(a * math.log(a / b) for a, b in pairs if a > 0)


def loss(
    rows: list[tuple[Tensor, Tensor, Tensor | None]], kept: int, strength: float, label_weight: float
) -> float:
    """Compute the mean over all target tokens.

    Args:
        rows: For each example its present logits (targets, vocabulary) and gold tokens; for an example of the
            memory also the logits of the model after the example's own task.
        kept: How many tokens are kept for each position.
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
