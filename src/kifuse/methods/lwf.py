"""LwF, learning without forgetting (arXiv 1606.09282): the model before the task is the teacher.

    L = 1/N [ sum CE + lambda T^2 sum KL(p_before || p_now) ]

where N is the number of target tokens in the batch, the sums run over target positions, and p is the softmax
of the logits divided by T. The teacher reads the batch without dropout, with the weights that the task
started with. The first task has no teacher and is plain training.

| symbol | setting |
| --- | --- |
| lambda | `strength` |
| T | `temperature` |

In the paper, old tasks have their own output layers, which are trained to keep their old answers. A language
model has one output for all tasks: it is trained to keep the answers that it would have given to the new
inputs.
"""

from __future__ import annotations

from typing import Any, final

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional

from kifuse.methods.base import SETTINGS, Method, Need, NotNegative, Positive
from kifuse.methods.context import Batch, Context, TaskInfo


@final
@dataclass(kw_only=True, config=SETTINGS)
class LwF(Method):
    """Distillation from the model before the task, on the task's own inputs."""

    strength: NotNegative = 1.0
    temperature: Positive = 2.0

    plain_first_task = True

    @property
    def needs(self) -> frozenset[Need]:
        """The weights before the task, which are the teacher's."""
        return frozenset({"before task"})

    def extra_passes(self, task: TaskInfo, memory_batches: int) -> int:
        """The teacher's forward pass: a third of a step's work."""
        return 0 if task.first else task.steps // 3

    def loss(self, ctx: Context, model: Any, batch: Batch, outputs: Any) -> Tensor:
        """Add the divergence from the predictions of the model before the task on the same batch."""
        if ctx.task.first:
            return ctx.target_loss
        now = torch.cat([logits for logits, _ in ctx.targets(batch, outputs)])
        teacher = ctx.forward(batch, at="before task")
        before = torch.cat([logits for logits, _ in ctx.targets(batch, teacher)])
        return ctx.target_loss + ctx.mean_over_targets(
            self.strength * distillation(before, now, self.temperature)
        )


def distillation(before: Tensor, now: Tensor, temperature: float) -> Tensor:
    """T^2 KL(before || now) at each position, with both distributions softened by T.

    Args:
        before: The teacher's logits, `(positions, vocabulary)`.
        now: The student's logits; the result is differentiable in them.
        temperature: T.

    Returns:
        `(positions,)`. The factor T^2 keeps its gradient as large as that of the labels for every T.
    """
    wanted = functional.log_softmax(before / temperature, dim=-1)
    found = functional.log_softmax(now / temperature, dim=-1)
    return temperature**2 * functional.kl_div(found, wanted, reduction="none", log_target=True).sum(dim=-1)
