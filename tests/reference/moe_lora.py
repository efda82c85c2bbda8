"""A literal computation of a layer of LoRA experts, one token and one expert at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def gates(x: Tensor, router: Tensor, top_k: int) -> list[float]:
    """Compute G(x) of one token `(in,)`."""
    scores = [math.exp(float(row @ x)) for row in router]
    found = [score / sum(scores) for score in scores]
    if top_k:
        kept = sorted(range(len(found)), key=lambda e: -found[e])[:top_k]
        total = sum(found[e] for e in kept)
        found = [found[e] / total if e in kept else 0.0 for e in range(len(found))]
    return found


def added(x: Tensor, a: Tensor, b: Tensor, router: Tensor, scale: float, top_k: int) -> Tensor:
    """Compute s sum_e G(x)_e B_e A_e x for tokens `(tokens, in)`."""
    rows = []
    for token in x:
        weights = gates(token, router, top_k)
        rows.append(scale * sum(w * (b[e] @ (a[e] @ token)) for e, w in enumerate(weights)))
    return torch.stack(rows)
