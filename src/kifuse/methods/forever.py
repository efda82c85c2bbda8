"""FOREVER (arXiv 2601.03938): replays when the weights have moved far enough; distance is its own time.

Theta_t are the trained weights after optimizer step t of a task. From the second task on:

- Delta_t = ||Theta_t - Theta_{t-1}||_2, tau_t = sum_{s<=t} Delta_s; the first S steps make a day, tau_day =
  tau_S, and mu_0 = tau_day / S; then mu_t = (1 - lambda) mu_{t-1} + lambda Delta_t and r_t = mu_t / mu_0.
- a replay event happens when tau_t >= d_j tau_day, d = 1, 2, 4, 7, 15, 30 days; tau restarts with each task.
- an event takes memory steps on L(memory) + beta_t ||Theta - Theta*||^2 with
  beta_t = beta_base clip(1 + gamma (r_t - 1), low, high), where Theta* is the model before the task.

| symbol | setting |
| --- | --- |
| S | `day_steps` |
| d_j | `schedule` |
| beta_base | `anchor` |
| gamma | `gamma` (not published; 1 is ours: the bounds of clip are then those of r_t) |
| lambda | `smoothing` |
| low, high | `clip` |
| memory steps of an event | `event_steps` (not published; ours: one pass over the memory, at most S) |

The following are not published either, and are our choice: memory steps do not count in tau and mu, because
an event could otherwise trigger the next one. They share the optimizer and the learning rate of the step
before them. Marks that are passed in one step are one event. There is no event after the last mark. A step
that changes no weight takes no time.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, final

import torch
from pydantic import Field, field_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from kifuse.methods.base import (
    SETTINGS,
    Context,
    Fraction,
    Method,
    NotNegative,
    OldData,
    Positive,
    TaskInfo,
)
from kifuse.methods.kept import OfTask, Unsaved
from kifuse.methods.parameters import Parameters

_log = logging.getLogger(__name__)

ROUNDING = 1e-9
"""A mark is reached early by this share of itself, so that a rounded sum is not one step late."""


class ModelTime:
    """Decides only from the sizes of updates when to replay, and how strong the anchor is.

    Args:
        day_steps: S.
        schedule: The marks d_j in days, increasing, from 1 on.
        smoothing: lambda.
    """

    def __init__(self, day_steps: int, schedule: Sequence[float], smoothing: float) -> None:
        self.day_steps, self.schedule, self.smoothing = day_steps, tuple(schedule), smoothing
        self.steps = 0
        self.elapsed = 0.0
        self.day = 0.0
        self.pace = 0.0
        self.reached = 0

    def step(self, size: float) -> bool:
        """Add Delta_t; returns whether a mark was reached."""
        self.steps += 1
        self.elapsed += size
        if self.steps <= self.day_steps:
            self.day = self.elapsed
            self.pace = self.elapsed / self.steps
        else:
            self.pace += self.smoothing * (size - self.pace)
        if self._first_day:
            return False
        before = self.reached
        days = self.days * (1.0 + ROUNDING)
        self.reached = sum(mark <= days for mark in self.schedule)
        return self.reached > before

    @property
    def _first_day(self) -> bool:
        """Whether the length of a day is not known yet: too few steps, or no movement in them."""
        return self.steps < self.day_steps or not self.day

    @property
    def days(self) -> float:
        """tau_t in days; during the first day, whose length is not known yet, the share of its steps."""
        if self._first_day:
            return min(self.steps / self.day_steps, 1.0)
        return self.elapsed / self.day

    @property
    def ratio(self) -> float:
        """r_t: the recent pace relative to that of the first day; 1 until that day is over."""
        if self._first_day:
            return 1.0
        return self.pace * self.day_steps / self.day

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state, for JSON."""
        names = ("steps", "elapsed", "day", "pace", "reached")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned."""
        for name, value in state.items():
            setattr(self, name, value)


@final
@dataclass(kw_only=True, config=SETTINGS)
class Forever(Method):
    """Replay events at growing intervals of model time, anchored at the model before the task."""

    day_steps: Annotated[int, Field(ge=1)] = 24
    schedule: tuple[Positive, ...] = (1.0, 2.0, 4.0, 7.0, 15.0, 30.0)
    anchor: NotNegative = 1e-3
    gamma: NotNegative = 1.0
    smoothing: Fraction = 0.05
    clip: tuple[NotNegative, NotNegative] = (0.5, 3.0)
    event_steps: Annotated[int, Field(ge=1)] | None = None

    _time: OfTask[ModelTime | None] = None
    _anchor: OfTask[list[Tensor]]
    _last: Unsaved[list[Tensor]]
    _due = False
    plain_first_task = True

    @field_validator("schedule")
    @classmethod
    def _marks_grow(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or value[0] < 1.0 or any(a >= b for a, b in pairwise(value)):
            raise ValueError("marks in days from 1 on, each later than the one before")
        return value

    @field_validator("clip")
    @classmethod
    def _bounds_in_order(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError("the lower bound before the upper one")
        return value

    @property
    def old_data(self) -> OldData:
        """Memory batches, in separate steps."""
        return "steps"

    def extra_passes(self, task: TaskInfo, memory_batches: int) -> int:
        """The steps of the events that equally large updates would cause, from the second task on."""
        events = sum(mark * self.day_steps <= task.steps for mark in self.schedule)
        return 0 if task.first else events * self._size(memory_batches)

    def _size(self, memory_batches: int) -> int:
        """Number of memory steps in an event."""
        return min(memory_batches, self.day_steps) if self.event_steps is None else self.event_steps

    def begin_task(self, ctx: Context) -> None:
        """Set the anchor and restart the time; the first task needs neither."""
        self._due = False
        first, task = self.schedule[0], ctx.task
        if not task.first and task.steps < first * self.day_steps:
            _log.warning(
                "forever: nothing will be replayed in task %r: the first replay comes after %g day(s) of "
                "%d steps, and the task has %d. Train longer, or set day_steps: %d or less",
                *(task.name, first, self.day_steps, task.steps, max(1, int(task.steps / first))),
            )
        if not task.first:
            self._time = ModelTime(self.day_steps, self.schedule, self.smoothing)
            self._anchor, self._last = ctx.params.clone(), ctx.params.clone()

    @torch.no_grad()
    def on_update(self, ctx: Context) -> None:
        """Measure how far the step moved the weights."""
        if self._time is None:
            return
        values = [p.detach() for p in ctx.params.tensors]
        moved = torch._foreach_norm(torch._foreach_sub(values, self._last))
        torch._foreach_copy_(self._last, values)
        # the decision to replay is made here, from a number that must be read from the device
        self._due = self._time.step(float(torch.stack(moved).float().norm()))

    def on_step(self, ctx: Context) -> None:
        """Replay if it is time."""
        if self._time is not None and ctx.logging:
            ctx.log(days=self._time.days, pace=self._time.ratio)
        if self._due and self._time is not None and ctx.memory_size:
            self._replay(ctx, self._time)
        self._due = False

    def _replay(self, ctx: Context, time: ModelTime) -> None:
        ratio, (low, high) = time.ratio, self.clip
        strength = self.anchor * min(max(1.0 + self.gamma * (ratio - 1.0), low), high)
        steps = self._size(ctx.memory_batches)
        distance = float(torch.stack(torch._foreach_norm(self._away(ctx.params))).float().norm())

        def pull(params: Parameters) -> None:
            """Add 2 beta (Theta - Theta*)."""
            for p, away in zip(params.tensors, self._away(params), strict=True):
                if p.grad is not None:
                    p.grad.add_(away.to(p.grad.dtype), alpha=2.0 * strength)

        for _ in range(steps):
            ctx.memory_step(before=pull)
        with torch.no_grad():
            torch._foreach_copy_(self._last, [p.detach() for p in ctx.params.tensors])
        ctx.event(
            "replay event",
            mark=self.schedule[time.reached - 1],
            days=time.days,
            ratio=ratio,
            anchor=strength,
            penalty=strength * distance**2,
            memory_steps=steps,
        )

    @torch.no_grad()
    def _away(self, params: Parameters) -> list[Tensor]:
        return list(torch._foreach_sub([p.detach() for p in params.tensors], self._anchor))

    def end_task(self, ctx: Context) -> None:
        """Record how many days the task took."""
        if self._time is not None:
            if not self._time.reached and self._time.steps >= self.day_steps * self.schedule[0]:
                _log.warning(
                    "forever: nothing was replayed in task %r: its %d steps were %.2f days, since they "
                    "moved the weights less than the first %d did, but the first replay comes after %g "
                    "days. Set day_steps lower",
                    *(ctx.task.name, self._time.steps, self._time.days, self.day_steps, self.schedule[0]),
                )
            ctx.event("model time", days=self._time.days, day=self._time.day)
