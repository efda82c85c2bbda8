"""OGD, orthogonal gradient descent: steps must not change the model's logits for earlier tasks' examples.

After a task, the gradients of the gold logits of some of its examples (the paper's variant GTL) are added to
a set S of orthonormal directions. To first order, a step orthogonal to all of them does not change those
logits:

    g~ = g - sum_(v in S) <g, v> v.

For a generated target the logit is the sum of its gold tokens' logits over all its positions.

| symbol | setting |
| --- | --- |
| examples of a task that join S | `per_task` |
| most vectors in S | `basis`; 0 protects nothing |
| what is projected | `project` |

The paper keeps one vector for each example, without a limit. Here S holds at most `basis` vectors. When it is
full, it is the best subspace of that size for all directions so far (`kifuse.knowledge.basis`), which serves
early and late tasks equally.

The paper projects gradients and takes steps with SGD. Adam scales each coordinate and adds weight decay, so
its step leaves the allowed subspace. With `project="update"` (the default) the gradient is projected, and
then the step that the optimizer actually took, theta <- theta_0 + P (theta - theta_0), where theta_0 is the
start of the task. `project="gradient"` is the paper's rule alone.

Paper: arXiv 1910.07104. Its values are for small image models; those of `per_task` and `basis` are kifuse's
own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal, final

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from kifuse.knowledge.basis import CappedBasis
from kifuse.methods.base import (
    SETTINGS,
    Context,
    Method,
    Need,
    TaskInfo,
)
from kifuse.methods.kept import Kept, OfTask, Unsaved


@final
@dataclass(kw_only=True, config=SETTINGS)
class OGD(Method):
    """Steps orthogonal to the gradients of earlier tasks' logits."""

    per_task: Annotated[int, Field(ge=1)] = 20
    basis: Annotated[int, Field(ge=0)] = 100
    project: Literal["update", "gradient"] = "update"

    _basis: Kept[dict[str, Tensor] | None] = None
    _start: OfTask[list[Tensor] | None] = None
    _directions: Unsaved[CappedBasis]

    plain_first_task = False

    @property
    def needs(self) -> frozenset[Need]:
        """The task's examples, from whose gradients the directions are computed."""
        return frozenset({"examples"}) if self.basis else frozenset()

    def extra_passes(self, task: TaskInfo, memory_batches: int) -> int:
        """One pass over the examples whose gradients are kept."""
        return -(-min(self.per_task, task.examples) // task.batch_size) if self.basis else 0

    def begin_task(self, ctx: Context) -> None:
        """Load the basis, and copy the parameters before the task."""
        self._directions = CappedBasis(ctx.params.count, self.basis, ctx.params.tensors[0].device)
        if self._basis:
            self._directions.load_state_dict(self._basis)
            self._start = ctx.params.clone() if self.project == "update" else None

    @torch.no_grad()
    def on_gradients(self, ctx: Context) -> None:
        """Project the gradient: g <- g - V^T V g."""
        if not len(self._directions):
            return
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in ctx.params.tensors]
        for grad, piece in self._projected(grads):
            grad.copy_(piece)

    @torch.no_grad()
    def on_update(self, ctx: Context) -> None:
        """Project the optimizer's step: theta <- theta_0 + P (theta - theta_0)."""
        if self._start is None:
            return
        values = [p.detach() for p in ctx.params.tensors]
        moved = torch._foreach_sub(values, self._start)
        for (_, piece), value, start in zip(self._projected(moved), values, self._start, strict=True):
            value.copy_(start + piece)

    def _projected(self, tensors: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Project all tensors together; yield each tensor with its part of the projection."""
        flat = torch.cat([t.float().flatten() for t in tensors])
        pieces = self._directions.project_(flat).split([t.numel() for t in tensors])
        for tensor, piece in zip(tensors, pieces, strict=True):
            yield tensor, piece.view_as(tensor)

    def end_task(self, ctx: Context) -> None:
        """Add the directions of the task's logits."""
        if self.basis:
            share = self._directions.extend(ctx.logit_gradients(self.per_task))
            ctx.event("basis", vectors=len(self._directions), kept_share=share)
            self._basis = self._directions.state_dict() if len(self._directions) else None
