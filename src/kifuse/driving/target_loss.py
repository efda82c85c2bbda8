"""The training loss: next-token cross-entropy on the target tokens only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


class TargetLoss:
    """The sum over target tokens, divided by the number of target tokens in the whole optimizer step.

    Because of this divisor, 4 x 1, 2 x 2 and 1 x 4 examples give the same loss under accumulation, for every
    kind of model.

    Args:
        shift: Whether a position predicts the next label, as in decoder-only models, or its own, as in
            encoder-decoder models.
    """

    def __init__(self, *, shift: bool) -> None:
        self.shift = shift

    def __call__(
        self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Compute the loss.

        Args:
            outputs: Model output with `logits` (batch, length, vocabulary), aligned with `labels`.
            labels: (batch, length), -100 where there is no target.
            num_items_in_batch: Target tokens over all micro-batches and devices of the step.

        Returns:
            Scalar; 0 when no label counts.
        """
        logits = outputs["logits"]
        if self.shift:
            logits, labels = logits[:, :-1], labels[:, 1:]
        kept = labels != -100
        # only target positions are turned into probabilities: a prompt's positions are never scored
        total = functional.cross_entropy(logits[kept].float(), labels[kept], reduction="sum")
        if num_items_in_batch is None:
            return total / kept.sum().clamp(min=1)
        return total / torch.as_tensor(num_items_in_batch, device=total.device).clamp(min=1)
