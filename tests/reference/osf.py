"""Orthogonal subspace fine-tuning, written out: each matrix is split into singular directions, in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Weights = dict[str, Tensor]
Loss = Callable[[Weights, Any], Tensor]


def frozen_count(rows: int, columns: int, share: float) -> int:
    """Return how many directions are frozen."""
    directions = min(rows, columns)
    return min(max(int(share * directions), 1), directions - 1)


def osf(
    weights: Weights,
    loss: Loss,
    batches: Sequence[Any],
    *,
    share: float,
    rate: float,
    weight_decay: float,
    project: str,
) -> list[Weights]:
    """Train one task, and return the whole matrices after each step.

    Args:
        weights: W by name.
        loss: A function of such matrices and a batch.
        batches: One batch for each step.
        share: The share of the directions that is frozen.
        rate: AdamW's learning rate, which is constant.
        weight_decay: AdamW's weight decay.
        project: "update", or only "gradient".
    """
    frozen, trained, bases = {}, {}, {}
    for name, weight in weights.items():
        u, s, v = torch.linalg.svd(weight.double(), full_matrices=False)
        k = frozen_count(weight.shape[0], weight.shape[1], share)
        frozen[name] = sum(s[i] * torch.outer(u[:, i], v[i]) for i in range(k))
        bases[name] = (u[:, :k], v[:k])
        for which, value in (("U", u[:, k:]), ("S", s[k:]), ("V", v[k:])):
            trained[name, which] = value.clone()
    first = {key: torch.zeros_like(value) for key, value in trained.items()}
    second = {key: torch.zeros_like(value) for key, value in trained.items()}
    reached = []
    for step, batch in enumerate(batches, start=1):
        leaves = {key: value.clone().requires_grad_() for key, value in trained.items()}
        whole = {name: _whole(frozen[name], leaves, name) for name in weights}
        loss({name: w.float() for name, w in whole.items()}, batch).backward()
        for key, value in trained.items():
            grad = _without(leaves[key].grad, key[1], *bases[key[0]])
            first[key] = 0.9 * first[key] + 0.1 * grad
            second[key] = 0.999 * second[key] + 0.001 * grad * grad
            mean, square = first[key] / (1 - 0.9**step), second[key] / (1 - 0.999**step)
            moved = value - rate * weight_decay * value - rate * mean / (square.sqrt() + 1e-8)
            trained[key] = _without(moved, key[1], *bases[key[0]]) if project == "update" else moved
        reached.append({name: _whole(frozen[name], trained, name) for name in weights})
    return reached


def _whole(frozen: Tensor, factors: dict[Any, Tensor], name: str) -> Tensor:
    u, s, v = (factors[name, which] for which in "USV")
    return frozen + u @ torch.diag(s) @ v


def _without(value: Tensor, which: str, u: Tensor, v: Tensor) -> Tensor:
    """Remove the frozen directions, one after the other."""
    found = value.clone()
    if which == "U":
        for direction in u.T:
            found = found - torch.outer(direction, direction @ value)
    if which == "V":
        for direction in v:
            found = found - torch.outer(value @ direction, direction)
    return found
