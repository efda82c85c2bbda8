"""Compute losses and gradients at any weights by hand: a part of `kifuse.methods.context.Context`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]
Values = dict[str, Tensor]


@dataclass(frozen=True)
class HandBatch:
    """Inputs and targets, with one example in each row."""

    x: Tensor
    y: Tensor

    def split(self, size: int) -> list[HandBatch]:
        """See `Batch.split`."""
        return [HandBatch(*pair) for pair in zip(self.x.split(size), self.y.split(size), strict=True)]

    def __add__(self, other: Any) -> HandBatch:
        return HandBatch(torch.cat([self.x, other.x]), torch.cat([self.y, other.y]))


class HandPasses:
    """Passes over the batches of a training by hand.

    Args:
        training: An object with `params`, `batch` (of the step) and `memory` (batches taken in turn).
        loss: A function of values by name and a pair of inputs and targets, which is a mean over the rows.
    """

    def __init__(self, training: Any, loss: Callable[[Values, Pair], Tensor]) -> None:
        self.training, self.formula = training, loss
        self.drawn = self.probed = 0
        self.probe_losses: list[float] = []
        self.limit: float | None = None

    def step_batch(self) -> HandBatch:
        """Return the step's batch."""
        return HandBatch(*self.training.batch)

    def draw_memory(self) -> HandBatch:
        """Return the next memory batch."""
        self.drawn += 1
        return HandBatch(*self.training.memory[(self.drawn - 1) % len(self.training.memory)])

    def batch_loss(self, batch: Any, *, at: Sequence[Tensor], noise: int = 0) -> Tensor:
        """Compute the loss at some values."""
        return self.formula(dict(zip(self.training.params.names, at, strict=True)), (batch.x, batch.y))

    def gradient(
        self, batch: Any, *, at: Sequence[Tensor] | None = None, noise: int = 0, create_graph: bool = False
    ) -> list[Tensor]:
        """Compute the gradient at some values."""
        values = list(self.training.params.tensors if at is None else at)
        if not create_graph:
            values = [value.detach().requires_grad_() for value in values]
        with torch.enable_grad():
            return list(
                torch.autograd.grad(self.batch_loss(batch, at=values), values, create_graph=create_graph)
            )

    def memory_loss(self, *, train: bool) -> float:
        """Return the loss of the next memory batch for probes, or a value that a test has prepared."""
        self.probed += 1
        if self.probe_losses:
            return self.probe_losses[self.probed - 1]
        batch = HandBatch(*self.training.memory[-self.probed % len(self.training.memory)])
        return float(self.batch_loss(batch, at=[p.detach() for p in self.training.params.tensors]))

    def clip(self) -> None:
        """Clip the gradients."""
        if self.limit is not None:
            torch.nn.utils.clip_grad_norm_(self.training.params.tensors, self.limit)
