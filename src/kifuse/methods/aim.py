"""AIMMerging as in its published code (arXiv 2509.17348): merges inner and memory steps when they are due.

From the second task on, this happens after each optimizer step, with theta_0 the weights at the last merge:

1. probe: h = loss on a freshly drawn memory batch. With c probes since the last merge (from 0): up to
   c = floor(2S/3) the h are collected, then delta = kappa mean(h). After that, h >= delta is an alarm, and
   f += 1. Without an alarm, a step that comes S after the due step D also gives f += 1 (forced).
2. merge when step >= D and f >= 1, or f >= 3, and so within 2S steps. Delta_in = theta - theta_0; M memory
   steps from theta give Delta_out; theta <- theta_0 + w_in Delta_in + w_out Delta_out, the new theta_0.

   | w_in / w_out | S <= 70 | S > 70 |
   | --- | --- | --- |
   | f >= 2 | 0.5 / 0.5 | 0.4 / 0.6 |
   | f = 1 | 0.6 / 0.4 | 0.5 / 0.5 |

3. interval: Lambda_b = ||Delta_in||_1 / S, rho = Lambda_b / Lambda_{b-1}. After the first 4 merges,
   rho >= 1: S <- max(2, floor(S / rho)), then halved if it is still 64 or more;
   rho < 1: S <- min(128, floor(S (1 / rho + 1))), with 0.5 instead of 1 from S = 64 on.
   M <- floor(S M_0 / S_0), D <- step + S.

| symbol | setting |
| --- | --- |
| S_0, M_0 | `interval`, `memory_steps` |
| kappa | `threshold` |
| bounds of S | `shortest`, `longest` |
| merges that leave S | `cold_merges` |
| dropout of the probe | `probe`: "train" (the code: on), "eval" (off) |

The weights sum to 1: the merge averages the two displacements, it does not add them. As in the code, nothing
is merged at the end of a task, and the optimizer keeps its moments although the weights jump back. Two things
differ from the code: the loss of a memory step is the mean over its batch, not divided by the accumulation
factor; and the importance scores and the second optimizer, which that code makes but never uses, are left
out. The paper describes a trend in a sliding window, constant factors, and weights that a rehearsal-based
module computes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, final

import torch
from pydantic import Field, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from kifuse.methods.base import (
    SETTINGS,
    Context,
    Method,
    NotNegative,
    OldData,
    TaskInfo,
)
from kifuse.methods.kept import OfTask

_log = logging.getLogger(__name__)

SLOW = 70
"""If S is above this, the task is no longer learned fast."""
LONG = 64
"""From this S on, an interval shrinks twice and grows less."""
ALARMS = 3
"""Number of alarms that force a merge before it is due."""


class Intervals:
    """Decides only from the traces of h and Lambda when to merge, and with which weights.

    Args:
        interval: S_0.
        memory_steps: M_0.
        threshold: kappa.
        shortest: Smallest S.
        longest: Largest S.
        cold_merges: Number of merges that leave S unchanged.
    """

    def __init__(
        self,
        interval: int = 8,
        memory_steps: int = 8,
        threshold: float = 2.0,
        shortest: int = 2,
        longest: int = 128,
        cold_merges: int = 4,
    ) -> None:
        self._first, self._memory_first, self._kappa = interval, memory_steps, threshold
        self._bounds, self._cold = (shortest, longest), cold_merges
        self.interval = interval
        self.due = interval
        self.flags = 0
        self.alarms = 0
        self.merges = 0
        self.forced = False
        self.probes = 0
        self.signal = 0.0
        self.collected: list[float] = []
        self.limit: float | None = None

    @property
    def memory_steps(self) -> int:
        """M: number of memory steps in the next merge."""
        return math.floor(self.interval * self._memory_first / self._first)

    @property
    def weights(self) -> tuple[float, float]:
        """(w_in, w_out) of the next merge."""
        if self.flags >= 2:
            return (0.4, 0.6) if self.interval > SLOW else (0.5, 0.5)
        return (0.5, 0.5) if self.interval > SLOW else (0.6, 0.4)

    def probe(self, step: int, loss: float) -> bool:
        """Record h after a step; returns whether to merge now.

        Args:
            step: 1-based number of the step in the task; each one is probed.
            loss: h; a value that is not finite is neither collected nor an alarm.
        """
        last = 2 * self.interval // 3
        self.forced = False
        if self.probes <= last:
            if math.isfinite(loss):
                self.collected.append(loss)
            if self.probes == last and self.collected:
                self.limit = self._kappa * sum(self.collected) / len(self.collected)
        elif self.limit is not None and math.isfinite(loss) and loss >= self.limit:
            self.flags += 1
            self.alarms += 1
        elif step >= self.due + self.interval:
            self.flags += 1
            self.forced = True
        self.probes += 1
        return (step >= self.due and self.flags >= 1) or self.flags >= ALARMS

    def merged(self, step: int, movement: float) -> None:
        """Set the next interval.

        Args:
            step: Number of the step just taken.
            movement: ||Delta_in||_1 of the merge.
        """
        signal = movement / self.interval
        if self.merges >= self._cold:
            self.interval = self._next(signal)
        self.signal, self.merges = signal, self.merges + 1
        self.due = step + self.interval
        self.flags, self.probes, self.collected, self.limit = 0, 0, [], None

    def _next(self, signal: float) -> int:
        """The next S for the trend of Lambda; S goes to a bound if the model did not move, before or now."""
        shortest, longest = self._bounds
        if signal >= self.signal:
            # S / rho; if nothing moved in either of two merges, there is no trend
            wanted = self.interval * (self.signal / signal if signal else 1.0)
            interval = max(shortest, math.floor(wanted))
            return max(shortest, interval // 2) if interval >= LONG else interval
        if not signal:
            return longest
        more = 1.0 if self.interval < LONG else 0.5
        return math.floor(min(longest, self.interval * (self.signal / signal + more)))

    def state_dict(self) -> dict[str, Any]:
        """Return everything that changes, for JSON."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned."""
        for name, value in state.items():
            setattr(self, name, list(value) if isinstance(value, list) else value)


@final
@dataclass(kw_only=True, config=SETTINGS)
class AIMMerging(Method):
    """Averages a task's steps and memory steps, at intervals that follow learning and forgetting."""

    shortest: Annotated[int, Field(ge=2)] = 2
    longest: Annotated[int, Field(ge=2)] = 128
    interval: Annotated[int, Field(ge=2)] = 8
    memory_steps: Annotated[int, Field(ge=1)] = 8
    threshold: NotNegative = 2.0
    cold_merges: Annotated[int, Field(ge=1)] = 4
    probe: Literal["train", "eval"] = "train"

    _intervals: OfTask[Intervals | None] = None
    _start: OfTask[list[Tensor]]

    plain_first_task = True

    @field_validator("interval")
    @classmethod
    def _between_the_bounds(cls, value: int, info: ValidationInfo) -> int:
        shortest, longest = info.data.get("shortest", value), info.data.get("longest", value)
        if not shortest <= value <= longest:
            raise ValueError(f"a number from shortest ({shortest}) to longest ({longest})")
        return value

    @property
    def old_data(self) -> OldData:
        """Memory batches, in separate steps."""
        return "steps"

    def extra_passes(self, task: TaskInfo, memory_batches: int) -> int:
        """Per step of a later task, about M_0 / S_0 memory steps, and a third of a pass for the probe."""
        return 0 if task.first else round(task.steps * (self.memory_steps / self.interval + 1 / 3))

    def begin_task(self, ctx: Context) -> None:
        """Start the first interval; nothing is merged in the first task."""
        if not ctx.task.first:
            self._start, self._intervals = ctx.params.clone(), self._new_intervals()

    def _new_intervals(self) -> Intervals:
        return Intervals(
            interval=self.interval,
            memory_steps=self.memory_steps,
            threshold=self.threshold,
            shortest=self.shortest,
            longest=self.longest,
            cold_merges=self.cold_merges,
        )

    def on_step(self, ctx: Context) -> None:
        """Probe the memory, and merge when the controller says that it is time."""
        if self._intervals is None or not ctx.memory_size:
            return
        loss = ctx.memory_loss(train=self.probe == "train")
        if ctx.logging and math.isfinite(loss):
            ctx.log(memory_loss=loss, interval=self._intervals.interval)
        if self._intervals.probe(ctx.step, loss):
            self._merge(ctx, loss, self._intervals)

    @torch.no_grad()
    def _merge(self, ctx: Context, loss: float, now: Intervals) -> None:
        params = ctx.params
        inner_end = params.clone()
        inner = torch._foreach_sub(inner_end, self._start)
        for _ in range(now.memory_steps):
            with torch.enable_grad():
                ctx.memory_step()
        outer = torch._foreach_sub([p.detach() for p in params.tensors], inner_end)
        params.assign(_weighted(self._start, inner, outer, now.weights))
        movement = float(torch.stack(torch._foreach_norm(inner, 1)).sum())
        ctx.event(
            "merge",
            interval=now.interval,
            early=ctx.step < now.due,
            forced=now.forced,
            flags=now.flags,
            weights=list(now.weights),
            memory_steps=now.memory_steps,
            probe=loss if math.isfinite(loss) else None,
            limit=now.limit,
            learning_signal=movement / now.interval,
        )
        now.merged(ctx.step, movement)
        self._start = params.clone()

    def end_task(self, ctx: Context) -> None:
        """Record what was done; the last, unfinished interval is not merged."""
        if self._intervals is not None:
            now = self._intervals
            if not now.merges and ctx.memory_size:
                _log.warning(
                    "aimmerging: nothing was merged or replayed in task %r: the memory's loss did not rise "
                    "enough. Without that, the first merge comes at step %d, twice the interval; the task "
                    "had %d. Train longer, or set interval: %d or less",
                    *(ctx.task.name, now.due + now.interval, ctx.step, max(2, ctx.step // 2)),
                )
            ctx.event("intervals", merges=now.merges, alarms=now.alarms, interval=now.interval)


def _weighted(
    start: Sequence[Tensor], inner: Sequence[Tensor], outer: Sequence[Tensor], weights: tuple[float, float]
) -> list[Tensor]:
    """Compute theta_0 + w_in Delta_in + w_out Delta_out."""
    merged = torch._foreach_add(list(start), list(inner), alpha=weights[0])
    return list(torch._foreach_add(merged, list(outer), alpha=weights[1]))
