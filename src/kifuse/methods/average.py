"""Averages of weights that do not ask what matters: baselines of KIF's fusion (arXiv 2408.05200, Table V).

- Weight ensemble (Eq. 14): after each task from the second on, one lambda for all parameters,
  u <- lambda u^ + (1 - lambda) u, with u^ the model before the task and u the model after it.
- EMA: from the second task on, the model after a task is the running average of the parameters over its
  steps, v_0 = u^ and v_t = d v_{t-1} + (1 - d) u_t. It starts at the model before the task, which so keeps
  the weight d^steps, and is not blended with it a second time.

| symbol | setting |
| --- | --- |
| lambda (Eq. 14) | `average` |
| d | `decay` (its value is not in the paper) |

KIF with `fusion: average` or `fusion: ema` gives the same weights, and identifies importance as well.
"""

from __future__ import annotations

from dataclasses import field
from typing import Any, final

import torch
from pydantic.dataclasses import dataclass

from kifuse.knowledge.fusion import ParameterAverage, blend
from kifuse.methods.base import (
    SETTINGS,
    Fraction,
    Method,
    MethodState,
    Parameters,
    Past,
    StepContext,
    TaskInfo,
    kept_tensors,
    kept_under,
    prefixed,
    unprefixed,
)
from kifuse.methods.shown import FUSION, MOVED, WEIGHT_OF_PREVIOUS, Shown


@final
@dataclass(kw_only=True, config=SETTINGS)
class WeightEnsemble(Method):
    """One weight for all parameters of the model before a task and the model after it (Eq. 14)."""

    average: Fraction = 0.5

    shown = Shown(series=(WEIGHT_OF_PREVIOUS, MOVED), events=(FUSION,))

    _names: Any = field(default=(), init=False, repr=False)
    _previous: Any = field(default=None, init=False, repr=False)
    _resumed: Any = field(default=None, init=False, repr=False)

    def begin_task(self, task: TaskInfo, params: Parameters) -> None:
        """Remember the model before the task."""
        self._names, self._previous, self._resumed = params.names, params.clone(), None

    def continue_task(self, task: TaskInfo, params: Parameters) -> None:
        """Remember the model before the task, as `load_state` found it."""
        previous = kept_under("previous", self._resumed or {}, params)
        self._names, self._previous, self._resumed = params.names, previous, None

    def end_task(self, task: TaskInfo, ctx: StepContext) -> None:
        """Average the two models, from the second task on."""
        ctx.measure(moved=ctx.params.moved_from(self._previous))
        if not task.first:
            params = ctx.params
            weights = [torch.tensor(self.average)] * len(params.tensors)
            params.assign(blend(self._previous, params.clone(), weights))
            _note(self.average, ctx)
        self._previous = None

    def state(self) -> MethodState:
        """Nothing at the end of a task; in its middle the model before it."""
        if self._previous is None:
            return MethodState(dict(self._resumed or {}))
        return MethodState(kept_tensors("previous", self._names, self._previous))

    def load_state(self, state: MethodState) -> None:
        """Take back the model before the task."""
        self._resumed, self._previous = dict(state.tensors), None


@final
@dataclass(kw_only=True, config=SETTINGS)
class EMA(Method):
    """The running average of the parameters over the steps of a task, started at the model before it."""

    decay: Past = 0.99

    shown = Shown(series=(WEIGHT_OF_PREVIOUS, MOVED), events=(FUSION,))

    _names: Any = field(default=(), init=False, repr=False)
    _previous: Any = field(default=None, init=False, repr=False)
    _running: Any = field(default=None, init=False, repr=False)
    _resumed: Any = field(default=None, init=False, repr=False)

    def begin_task(self, task: TaskInfo, params: Parameters) -> None:
        """Start the average at the model before the task; there is none before the first."""
        self._names, self._previous, self._resumed = params.names, params.clone(), None
        self._running = None if task.first else ParameterAverage(params.tensors, self.decay)

    def continue_task(self, task: TaskInfo, params: Parameters) -> None:
        """Go on with the average that `load_state` found."""
        kept = self._resumed or {}
        self.begin_task(task, params)
        self._previous = kept_under("previous", kept, params)
        if self._running is not None:
            self._running.load_state_dict(unprefixed("running", kept))

    def on_update(self, params: Parameters) -> None:
        """Take the step's parameters in."""
        if self._running is not None:
            self._running.update(params.tensors)

    def end_task(self, task: TaskInfo, ctx: StepContext) -> None:
        """Replace the model by the average, from the second task on."""
        ctx.measure(moved=ctx.params.moved_from(self._previous))
        if self._running is not None:
            ctx.params.assign(self._running.average())
            _note(self.decay**self._running.steps, ctx)
        self._previous = self._running = None

    def state(self) -> MethodState:
        """Nothing at the end of a task; in its middle the model before it and the average."""
        if self._previous is None:
            return MethodState(dict(self._resumed or {}))
        tensors = kept_tensors("previous", self._names, self._previous)
        if self._running is not None:
            tensors |= prefixed("running", self._running.state_dict())
        return MethodState(tensors)

    def load_state(self, state: MethodState) -> None:
        """Take back the model before the task and the average."""
        self._resumed, self._previous, self._running = dict(state.tensors), None, None


def _note(weight: float, ctx: StepContext) -> None:
    ctx.event("fusion", mean_weight_of_previous=weight)
    ctx.log(mean_weight_of_previous=weight)
    ctx.measure(weight_of_previous=torch.full((len(ctx.params.tensors),), weight))
