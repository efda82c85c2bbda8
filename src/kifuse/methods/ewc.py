"""EWC and online EWC: a quadratic penalty holds parameters that matter to earlier tasks in place.

After task k, the Fisher information of its examples tells how much each parameter matters:

    F_k = E_(x, y) (d log p(y | x) / d theta)^2,

where y is the gold target and log p the sum over its tokens, with dropout off. The square is taken of each
example's own gradient, so that F does not depend on the batch size. From the second task on

    EWC         L = L_t + lambda/2 sum_k F_k (theta - theta*_k)^2,
    online EWC  L = L_t + lambda/2 Fbar (theta - theta*_(t-1))^2,    Fbar_k = gamma Fbar_(k-1) + F_k,

where theta*_k are the parameters after task k. The sum over tasks needs no more memory than its last term:
its gradient is that of one quadratic around the weighted mean of the anchors, and the rest is a constant,

    sum_k F_k (theta - theta*_k)^2 = Fbar (theta - c)^2 + const,
    Fbar = sum_k F_k,  c = sum_k F_k theta*_k / Fbar,

so that both forms keep 2 |theta| scalars, whatever the number of tasks.

| symbol | setting |
| --- | --- |
| lambda | `penalty` |
| gamma | `gamma` (online) |
| number of examples in E | `examples` |

The gradient lambda Fbar (theta - c) is added in closed form to the task's gradient, after clipping. So
clipping never scales the penalty down, and the penalty has the same weight however a batch is split.

Papers: EWC, arXiv 1612.00796; online EWC, arXiv 1805.06370. Neither gives a lambda for language models; the
default is kifuse's own (see docs/methods/ewc.md).
"""

from __future__ import annotations

from typing import Annotated, final

import torch
from pydantic import Field, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from kifuse.methods.base import (
    SETTINGS,
    Context,
    Method,
    Need,
    Parameters,
    TaskInfo,
)
from kifuse.methods.kept import Kept
from kifuse.methods.shown import HISTORY, HISTORY_AFTER, IMPORTANCE, Shown


@final
@dataclass(kw_only=True, config=SETTINGS)
class EWC(Method):
    """Elastic weight consolidation, with one term for each earlier task or with one running term (online)."""

    online: bool = False
    penalty: Annotated[float, Field(ge=0.0)] = 100.0
    gamma: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    examples: Annotated[int, Field(ge=1)] | None = None

    _fisher: Kept[list[Tensor] | None] = None
    """Fbar; None before the end of the first task."""
    _centre: Kept[list[Tensor]]
    """c."""
    _spread: Kept[float] = 0.0

    plain_first_task = False
    shown = Shown(series=(IMPORTANCE, HISTORY, HISTORY_AFTER))

    @field_validator("gamma")
    @classmethod
    def _only_online(cls, value: float, info: ValidationInfo) -> float:
        if value != 1.0 and not info.data.get("online", True):
            raise ValueError("1 with online: false, which forgets no earlier task")
        return value

    @property
    def needs(self) -> frozenset[Need]:
        """The Fisher information is computed from single examples."""
        return frozenset({"examples"})

    def extra_passes(self, task: TaskInfo, memory_batches: int) -> int:
        """One pass over the examples from which F is computed."""
        return -(-min(self.examples or task.examples, task.examples) // task.batch_size)

    @torch.no_grad()
    def on_gradients(self, ctx: Context) -> None:
        """Add the penalty's gradient, lambda Fbar (theta - c)."""
        params = ctx.params
        if self._fisher is None or not self.penalty:
            return
        pull = torch._foreach_sub([p.detach() for p in params.tensors], self._centre)
        torch._foreach_mul_(pull, self._fisher)
        pairs = [(p.grad, each) for p, each in zip(params.tensors, pull, strict=True) if p.grad is not None]
        if pairs:
            grads, pulls = zip(*pairs, strict=True)
            torch._foreach_add_(grads, pulls, alpha=self.penalty)

    def on_step(self, ctx: Context) -> None:
        """Log the penalty beside the task's loss."""
        if self._fisher is not None and ctx.logging:
            size = self._size(ctx.params, self._fisher)
            ctx.log(penalty=size, weighted_penalty=self.penalty * size)

    @torch.no_grad()
    def _size(self, params: Parameters, fisher: list[Tensor]) -> float:
        """The penalty without its factor lambda, 1/2 sum_k sum_i F_ki (theta_i - theta*_ki)^2."""
        terms = [
            (f * (p - c) ** 2).sum() for p, f, c in zip(params.tensors, fisher, self._centre, strict=True)
        ]
        return 0.5 * (float(torch.stack(terms).sum()) + self._spread)

    def end_task(self, ctx: Context) -> None:
        """Measure F_t and add it to what is kept."""
        params = ctx.params
        fisher = ctx.squared_gradients(self.examples)
        mean = float(sum(float(f.sum()) for f in fisher)) / params.count
        size = None if self._fisher is None else self.penalty * self._size(params, self._fisher)
        ctx.event("fisher", mean=mean, **({} if size is None else {"weighted_penalty": size}))
        ctx.measure(importance=params.means(fisher))
        theta = [p.detach().float().clone() for p in params.tensors]
        if self._fisher is None:
            self._fisher, self._centre = fisher, theta
        else:
            ctx.measure(history=params.means(self._fisher))
            self._fold(self._fisher, fisher, theta)
        ctx.measure(history_after=params.means(self._fisher))

    @torch.no_grad()
    def _fold(self, old: list[Tensor], fisher: list[Tensor], theta: list[Tensor]) -> None:
        """Online: Fbar <- gamma Fbar + F, c <- theta. Otherwise Fbar <- Fbar + F, c <- the weighted mean."""
        # make new tensors: a state that was given out must not change
        both, centre = list(torch._foreach_add(fisher, old, alpha=self.gamma)), self._centre
        self._fisher = both
        if self.online:
            self._centre = theta
            return
        # F / (Fbar + F); where both are 0 the mean has no weight and stays unchanged
        share = [torch.nan_to_num(new / each) for new, each in zip(fisher, both, strict=True)]
        way = torch._foreach_sub(theta, centre)
        self._centre = list(torch._foreach_addcmul(centre, share, way))
        for before, part, each in zip(old, share, way, strict=True):
            self._spread += float((before * part * each**2).sum())
