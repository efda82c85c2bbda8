"""Recurrent-KIF (arXiv 2502.17510, Algorithm 1): inner loop, memory loop, masked fusion, many times a task.

A round, from the second task on:

1. inner loop, from theta_b: Q steps on the current task; I_in <- a1 I_in + (1 - a1) |w g| (Eq. 3-4), started
   anew each round; tau_in = theta_Q - theta_b (Eq. 2).
2. outer loop, from theta_Q: M steps on the memory; I_out <- a2 |w g| + (1 - a2) I_out (Eq. 6-7: here a2
   weighs the new value), which lives through the task; tau_out = theta_M - theta_Q (Eq. 5).
3. fusion: m_in, m_out mark the most important 20% of all parameters; theta_{b+1} = theta_b + m_in tau_in +
   m_out tau_out (Eq. 8-9).

| symbol | setting |
| --- | --- |
| Q, M | `inner_steps`, `outer_steps` |
| a1, a2 | `alpha_inner`, `alpha_outer` |
| beta_out | `outer_lr` (None: the rate of the inner step just taken) |
| 1 - 20% | `quantile` |

Deviations of the published code, each a setting: `fusion="published"` (0.4/0.6 where both masks are 1,
0.5/0.5 where neither is, so nothing is dropped), `score="uncertainty"` (Ibar * Ubar; 0.85 for all averages is
`alpha_inner=0.85, alpha_outer=0.15`) and `outer_steps=4`.

On purpose: the parameters jump at a fusion, and `moments` says whether the optimizer's moments are kept or
reset there; `outer_optimizer` says whether memory steps share them. The last round of a task may be shorter
than Q steps, so that no step stays unfused. A memory step is never taken at the next step's rate, which a
schedule may have brought to 0.
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal, final

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from kifuse.knowledge.fusion import masked_sum
from kifuse.knowledge.importance import ImportanceTracker
from kifuse.knowledge.selection import above, top_fraction_threshold
from kifuse.methods.base import SETTINGS, Method, MethodState, OldData, Parameters, StepContext, TaskInfo

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]

BOTH_AND_NEITHER = {"paper": ((1.0, 1.0), (0.0, 0.0)), "published": ((0.4, 0.6), (0.5, 0.5))}
"""Weights of (tau_in, tau_out) where both masks are 1, and where neither is."""


@final
@dataclass(kw_only=True, config=SETTINGS)
class RecurrentKIF(Method):
    """Inner loop on the task, outer loop on the memory, masked fusion; again and again."""

    inner_steps: Annotated[int, Field(ge=1)] = 8
    outer_steps: Annotated[int, Field(ge=0)] = 1
    outer_lr: Annotated[float, Field(gt=0.0)] | None = None
    outer_optimizer: Literal["shared", "own"] = "shared"
    moments: Literal["keep", "reset"] = "keep"
    fusion: Literal["paper", "published"] = "paper"
    score: Literal["smoothed", "uncertainty"] = "smoothed"
    importance: Literal["first", "gradient"] = "first"
    alpha_inner: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.55
    alpha_outer: Annotated[float, Field(gt=0.0, le=1.0)] = 0.55
    quantile: Fraction = 0.8

    _inner: Any = field(default=None, init=False, repr=False)
    _outer: Any = field(default=None, init=False, repr=False)
    _start: Any = field(default=None, init=False, repr=False)
    _rounds: Any = field(default=0, init=False, repr=False)
    _overlap: Any = field(default=None, init=False, repr=False)

    @property
    def old_data(self) -> OldData:
        """Memory batches, in steps of their own."""
        return "steps"

    def begin_task(self, task: TaskInfo, params: Parameters) -> None:
        """Start the first round; on the first task there is nothing to fuse with."""
        self._inner = self._outer = self._start = None
        self._rounds, self._overlap = 0, None
        if not task.first:
            self._inner = self._new_tracker(params, self.alpha_inner)
            # the paper's a2 weighs the new value, the tracker's the old one
            self._outer = self._new_tracker(params, 1.0 - self.alpha_outer)
            self._start = params.clone()

    def _new_tracker(self, params: Parameters, alpha: float) -> ImportanceTracker:
        return ImportanceTracker(
            params.tensors,
            order=self.importance,
            alpha1=alpha,
            alpha2=alpha,
            uncertainty=self.score == "uncertainty",
        )

    def on_gradients(self, params: Parameters) -> None:
        """Read the inner importance (Eq. 3-4)."""
        if self._inner is not None:
            self._inner.update(params.tensors, params.grads)

    def on_step(self, ctx: StepContext) -> None:
        """Close the round after Q inner steps, and at the end of the task."""
        if self._start is None or not ctx.memory_size:
            return
        if ctx.step % self.inner_steps == 0 or ctx.step == ctx.total_steps:
            self._round(ctx)

    @torch.no_grad()
    def _round(self, ctx: StepContext) -> None:
        params = ctx.params
        inner_end = params.clone()
        for _ in range(self.outer_steps):
            with torch.enable_grad():
                ctx.memory_step(lr=self.outer_lr, optimizer=self.outer_optimizer, before=self._read_outer)
        tau_in = torch._foreach_sub(inner_end, self._start)
        tau_out = torch._foreach_sub([p.detach() for p in params.tensors], inner_end)
        mask_in, mask_out = self._mask(self._inner), self._mask(self._outer)
        both, neither = BOTH_AND_NEITHER[self.fusion]
        fused = masked_sum(self._start, tau_in, tau_out, mask_in, mask_out, both=both, neither=neither)
        params.assign(fused)
        if self.moments == "reset":
            ctx.reset_moments()
        self._note(mask_in, mask_out, ctx)
        self._inner.reset()
        self._start = params.clone()

    def _read_outer(self, params: Parameters) -> None:
        self._outer.update(params.tensors, params.grads)

    def _mask(self, tracker: ImportanceTracker) -> list[Tensor]:
        scores = tracker.scores()
        return above(scores, top_fraction_threshold(scores, 1.0 - self.quantile))

    def _note(self, mask_in: list[Tensor], mask_out: list[Tensor], ctx: StepContext) -> None:
        """Count fusions and the share of parameters in both masks, without waiting for the device."""
        self._rounds += 1
        both = (
            torch.stack([(i & o).sum() for i, o in zip(mask_in, mask_out, strict=True)]).sum()
            / ctx.params.count
        )
        self._overlap = both if self._overlap is None else self._overlap + both

    def end_task(self, task: TaskInfo, ctx: StepContext) -> None:
        """Record what the fusions were."""
        if self._rounds:
            ctx.event(
                "fusions",
                rounds=self._rounds,
                mask_overlap=float(self._overlap) / self._rounds,
                skipped_inner=self._inner.skipped,
                skipped_outer=self._outer.skipped,
            )
        self._inner = self._outer = self._start = None

    def state(self) -> MethodState:
        """Nothing outlives a task but the weights and the memory buffer."""
        return MethodState()

    def load_state(self, state: MethodState) -> None:
        """Nothing to take back."""
