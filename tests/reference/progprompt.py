"""A literal computation of the prompts that Progressive Prompts reads, one after another."""

from __future__ import annotations

import torch
from torch import Tensor


def stack(prompts: list[Tensor], task: int | None) -> Tensor:
    """Return [P_t; P_(t-1); ...; P_1] for the t-th task (from 0), or for the last task.

    Args:
        prompts: P_1, P_2, ..., each `(L, d)`.
        task: t, or None if it is not known.
    """
    last = len(prompts) - 1 if task is None else min(task, len(prompts) - 1)
    found = []
    for place in range(last, -1, -1):
        found.append(prompts[place])
    return torch.cat(found)


def through(prompt: Tensor, first: Tensor, b1: Tensor, second: Tensor, b2: Tensor) -> Tensor:
    """Compute P + LN(W_2 ReLU(W_1 P + b_1) + b_2); the layer norm is new, without scale and shift."""
    rows = []
    for vector in prompt:
        inner = second @ torch.clamp(first @ vector + b1, min=0) + b2
        spread = ((inner - inner.mean()) ** 2).mean()
        rows.append(vector + (inner - inner.mean()) / torch.sqrt(spread + 1e-5))
    return torch.stack(rows)
