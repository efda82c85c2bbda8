"""Literal recomputation of what Progressive Prompts reads, one prompt after another."""

from __future__ import annotations

import torch
from torch import Tensor


def stack(prompts: list[Tensor], task: int | None) -> Tensor:
    """[P_t; P_(t-1); ...; P_1]: of the t-th task (from 0), or of the last one.

    Args:
        prompts: P_1, P_2, ..., each `(L, d)`.
        task: t, or None where it is not known.
    """
    last = len(prompts) - 1 if task is None else min(task, len(prompts) - 1)
    found = []
    for place in range(last, -1, -1):
        found.append(prompts[place])
    return torch.cat(found)


def through(prompt: Tensor, first: Tensor, b1: Tensor, second: Tensor, b2: Tensor) -> Tensor:
    """P + LN(W_2 ReLU(W_1 P + b_1) + b_2), a layer norm as it begins: no scale, no shift."""
    rows = []
    for vector in prompt:
        inner = second @ torch.clamp(first @ vector + b1, min=0) + b2
        spread = ((inner - inner.mean()) ** 2).mean()
        rows.append(vector + (inner - inner.mean()) / torch.sqrt(spread + 1e-5))
    return torch.stack(rows)
