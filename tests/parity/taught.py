"""Train two tasks with a method that has a teacher; compute each loss again, literally, on the same batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kifuse.driving.method_loss import targets_of
from kifuse.methods.base import Method
from kifuse.models.loading import Backbone
from kifuse.running.one_task import TaskTraining
from tests.two_tasks import learn

TRAINING: dict[str, Any] = {"learning_rate": 5e-3, "epochs": 1, "scheduler": "constant"}
Rows = Sequence[tuple[Tensor, Tensor, Tensor]]


def losses(
    backbone: Backbone,
    stream: Path,
    folder: Path,
    method: Method,
    literal: Callable[[Rows], float],
    *,
    first: bool = True,
) -> tuple[list[tuple[float, float]], TaskTraining]:
    """Train, and compute each loss twice.

    Args:
        backbone: The model.
        stream: The folder of the tasks.
        folder: A folder for the Trainer.
        method: The method.
        literal: The loss of rows, each given as logits now, gold tokens, and logits before the task.
        first: Whether to compute the first task's losses, too.

    Returns:
        Pairs of the method's loss and the literal loss; and the outcome of the second task's training.
    """
    cls, teachers = type(method), list[nn.Module]()
    original = cls.loss
    seen: list[tuple[float, float]] = []

    def begin(self: Method, ctx: Any) -> None:
        teachers.append(copy.deepcopy(ctx.trainer.model).eval())

    def see(self: Any, ctx: Any, model: Any, batch: Any, outputs: Any) -> Tensor:
        found = original(self, ctx, model, batch, outputs)
        if first or not ctx.task.first:
            now = ctx.targets(batch, outputs)
            with torch.no_grad():
                said = teachers[-1](**batch.only_part)
            before = targets_of(batch.only_part, said, aligned=backbone.encoder_decoder)
            rows = [(a.detach(), gold, b) for (a, gold), (b, _) in zip(now, before, strict=True)]
            seen.append((float(found.detach()), literal(rows)))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cls, "begin_task", begin)
        patch.setattr(cls, "loss", see)
        _, done = learn(backbone, stream, method, folder, **TRAINING)
    return seen, done
