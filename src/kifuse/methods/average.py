"""Averages of weights that ignore importance: baselines of KIF's fusion (arXiv 2408.05200, Table V).

- Weight ensemble (Eq. 14): after each task from the second on, one lambda for all parameters,
  u <- lambda u^ + (1 - lambda) u, with u^ the model before the task and u the model after it.
- EMA: from the second task on, the model after a task is the running average of the parameters over its
  steps, v_0 = u^ and v_t = d v_{t-1} + (1 - d) u_t. It starts at the model before the task, which therefore
  keeps the weight d^steps, so it is not blended with that model a second time.

| symbol | setting |
| --- | --- |
| lambda (Eq. 14) | `average` |
| d | `decay` (its value is not in the paper) |

KIF with `fusion: average` or `fusion: ema` gives the same weights, and measures importance as well.
"""

from __future__ import annotations

from typing import final

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from kifuse.knowledge.fusion import ParameterAverage, blend
from kifuse.methods.base import (
    SETTINGS,
    Context,
    Fraction,
    Method,
    Past,
)
from kifuse.methods.kept import OfTask
from kifuse.methods.shown import FUSION, MOVED, WEIGHT_OF_PREVIOUS, Shown


@final
@dataclass(kw_only=True, config=SETTINGS)
class WeightEnsemble(Method):
    """Blends the model before a task and the model after it with one weight for all parameters (Eq. 14)."""

    average: Fraction = 0.5

    shown = Shown(series=(WEIGHT_OF_PREVIOUS, MOVED), events=(FUSION,))

    _previous: OfTask[list[Tensor]]

    plain_first_task = True

    def begin_task(self, ctx: Context) -> None:
        """Copy the model before the task."""
        self._previous = ctx.params.clone()

    def end_task(self, ctx: Context) -> None:
        """Blend the two models, from the second task on."""
        ctx.measure(moved=ctx.params.moved_from(self._previous))
        if not ctx.task.first:
            params = ctx.params
            weights = [torch.tensor(self.average)] * len(params.tensors)
            params.assign(blend(self._previous, params.clone(), weights))
            _note(self.average, ctx)


@final
@dataclass(kw_only=True, config=SETTINGS)
class EMA(Method):
    """The running average of the parameters over the steps of a task, started at the model before it."""

    decay: Past = 0.99

    shown = Shown(series=(WEIGHT_OF_PREVIOUS, MOVED), events=(FUSION,))

    _previous: OfTask[list[Tensor]]
    _running: OfTask[ParameterAverage | None] = None

    plain_first_task = True

    def begin_task(self, ctx: Context) -> None:
        """Start the average at the model before the task; there is no average in the first task."""
        self._previous = ctx.params.clone()
        self._running = None if ctx.task.first else ParameterAverage(ctx.params.tensors, self.decay)

    def on_update(self, ctx: Context) -> None:
        """Add the step's parameters to the average."""
        if self._running is not None:
            self._running.update(ctx.params.tensors)

    def end_task(self, ctx: Context) -> None:
        """Replace the model by the average, from the second task on."""
        ctx.measure(moved=ctx.params.moved_from(self._previous))
        if self._running is not None:
            ctx.params.assign(self._running.average())
            _note(self.decay**self._running.steps, ctx)


def _note(weight: float, ctx: Context) -> None:
    ctx.event("fusion", mean_weight_of_previous=weight)
    ctx.log(mean_weight_of_previous=weight)
    ctx.measure(weight_of_previous=torch.full((len(ctx.params.tensors),), weight))
