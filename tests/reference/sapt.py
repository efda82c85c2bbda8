"""A literal computation of SAPT's attention and of the term that holds it, one input and key at a time."""

from __future__ import annotations

import math

from torch import Tensor


def largest(embedded: Tensor) -> list[float]:
    """Compute e(x): for each dimension the largest value over the tokens of x, `(tokens, d)`, no padding."""
    return [max(float(token[i]) for token in embedded) for i in range(embedded.shape[1])]


def attention(
    e: list[float], down: Tensor, up: Tensor, scale: Tensor, shift: Tensor, keys: Tensor
) -> list[float]:
    """Compute a(x) over keys `(t, d)`."""
    inner = [sum(w * v for w, v in zip(row, e, strict=True)) for row in down.tolist()]
    outer = [sum(w * v for w, v in zip(row, inner, strict=True)) for row in up.tolist()]
    bent = [v / (1 + math.exp(-v)) for v in outer]
    mean = sum(bent) / len(bent)
    spread = sum((v - mean) ** 2 for v in bent) / len(bent)
    query = [
        s * (v - mean) / math.sqrt(spread + 1e-5) + b
        for v, s, b in zip(bent, scale.tolist(), shift.tolist(), strict=True)
    ]
    scores = [
        math.exp(sum(k * q for k, q in zip(key, query, strict=True)) / math.sqrt(len(e)))
        for key in keys.tolist()
    ]
    return [score / sum(scores) for score in scores]


def average(of: list[list[float]]) -> list[float]:
    """Compute abar: the mean of a over inputs."""
    return [sum(each[i] for each in of) / len(of) for i in range(len(of[0]))]


def reflection(by_task: list[tuple[list[float], list[list[float]]]]) -> float:
    """Compute sum_j mean KL(abar_j || a(x)), from each task's abar and the a of its kept inputs."""
    total = 0.0
    for wanted, found in by_task:
        for a in found:
            total += sum(w * math.log(w / v) for w, v in zip(wanted, a, strict=False) if w) / len(found)
    return total
