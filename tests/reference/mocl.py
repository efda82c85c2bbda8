"""A literal computation of MoCL's weights and of its loss, one row and one key at a time."""

from __future__ import annotations

import math

from torch import Tensor


def cosines(embedded: Tensor, keys: Tensor) -> list[float]:
    """Compute cos(q, k_i) of one row with keys `(t, d)`; its own tokens have the embeddings `(tokens, d)`."""
    query = [float(sum(embedded[:, i]) / len(embedded)) for i in range(embedded.shape[1])]
    size = math.sqrt(sum(q * q for q in query))
    found = []
    for key in keys.tolist():
        product = sum(q * k for q, k in zip(query, key, strict=True))
        found.append(product / (size * math.sqrt(sum(k * k for k in key))))
    return found


def weights(embedded: Tensor, keys: Tensor, sharpness: float) -> list[float]:
    """Compute w of one row."""
    scores = [math.exp(sharpness * each) for each in cosines(embedded, keys)]
    return [score / sum(scores) for score in scores]


def loss(rows: list[tuple[Tensor, list[int], float]], pull: float) -> float:
    """Compute L of a step. A row has the logits at its targets, the target tokens, and cos(q, k_t)."""
    total, count = 0.0, 0
    for logits, gold, alike in rows:
        for values, token in zip(logits.tolist(), gold, strict=True):
            norm = math.log(sum(math.exp(v) for v in values))
            total += norm - values[token] + pull * (1 - alike)
            count += 1
    return total / count
