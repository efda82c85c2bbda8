"""What a method may ask of the model without moving it: losses and gradients on batches, at any weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor


class Batch(Protocol):
    """Some examples, ready for the model."""

    def split(self, size: int) -> Sequence[Batch]:
        """The same examples in their order, in batches of `size`; the last may be smaller.

        With several processes each contributes its share, at least one example, to each of them.
        """
        ...

    def __add__(self, other: Any) -> Batch:
        """The examples of both; `other` is of the same engine."""
        ...


class Passes(Protocol):
    """Losses and gradients that move nothing.

    Losses are the Trainer's: the mean over the target tokens of the whole batch. Dropout is that of training,
    unless said otherwise. `noise` chooses its masks: passes of one step with the same number see the same
    ones, on batches of the same form; the random numbers of training itself are left as they are.
    """

    def step_batch(self) -> Batch:
        """The step's own batch, all micro-batches of it. In `on_batch` of a method that needs `batch`."""
        ...

    def draw_memory(self) -> Batch:
        """The next batch of the memory buffer, which counts as replayed."""
        ...

    def gradient(
        self,
        batch: Batch,
        *,
        at: Sequence[Tensor] | None = None,
        noise: int = 0,
        create_graph: bool = False,
    ) -> list[Tensor]:
        """The gradient of the loss of a batch, reduced over processes, not clipped.

        Args:
            batch: From `step_batch` or `draw_memory`.
            at: One value per parameter, in the order of `Parameters`; None for the present weights.
            noise: Number of the dropout masks.
            create_graph: Whether the gradient is itself differentiable in `at`.

        Returns:
            One tensor per parameter, of its shape.
        """
        ...

    def loss(self, batch: Batch, *, at: Sequence[Tensor], noise: int = 0) -> Tensor:
        """The loss of a batch at given weights, differentiable in them; a scalar."""
        ...

    def memory_loss(self, *, train: bool) -> float:
        """The loss of the present weights on a freshly drawn memory batch, without gradient.

        These batches are drawn beside those of memory steps, and do not count as replayed.

        Args:
            train: Whether dropout is on, as in training.
        """
        ...

    def clip(self) -> None:
        """Clip the parameters' gradients to the norm that the Trainer clips those of its steps to."""
        ...
