"""KIF, KIFLoRA and TaSL (arXiv 2408.05200): identify the knowledge of each task, then fuse.

While a task trains, the importance of every parameter is read from each step's gradient (Eq. 8-12). At its
end, skill units (Eq. 3-4) get one score each (Eq. 6), and the model before the task and the model after it
are blended unit by unit, by what mattered to the history and what mattered to the task (Eq. 15, or 16-17).
Only one score per unit outlives a task (Eq. 13).

| symbol | setting |
| --- | --- |
| alpha1, alpha2 (Eq. 10-12) | `alpha1`, `alpha2` |
| beta (Eq. 13) | `beta` |
| gamma and the 20% most important (Eq. 15) | `gamma`, `quantile` |
| tau (Eq. 16) | `tau` |
| lambda (Eq. 14) | `average` |
| weight of the orthogonality term (Eq. 5) | `orthogonality` |

KIF = matrix units, first order, static fusion (the defaults). KIFLoRA = rank units, second order, adaptive
fusion, orthogonality 0.1. With `replay_epochs` > 0 they become KIF-M and KIFLoRA-M: after fusion the memory
is replayed while the units that mattered to the current task alone stay frozen.

The authors' code reads the parameter after the optimizer has moved it (`reading="after"`); the papers' |w g|
takes both at one point (`reading="before"`, the default).
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal, final

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from kifuse.knowledge.fusion import adaptive_weights, blend, static_weights
from kifuse.knowledge.importance import ImportanceTracker, cumulative, min_max
from kifuse.knowledge.projection import orthogonality_gradients, orthogonality_penalty
from kifuse.knowledge.selection import quantile_threshold
from kifuse.knowledge.skill_units import SkillUnits
from kifuse.methods.base import SETTINGS, Method, MethodState, OldData, Parameters, StepContext, TaskInfo

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Past = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0)]


@final
@dataclass(kw_only=True, config=SETTINGS)
class KIF(Method):
    """Knowledge identification during training, fusion of old and new weights after it."""

    units: Literal["matrix", "rank", "element", "module", "layer"] = "matrix"
    order: Literal["first", "second", "gradient", "magnitude"] = "first"
    reading: Literal["before", "after"] = "before"
    smoothing: bool = True
    uncertainty: bool = True
    alpha1: Past = 0.85
    alpha2: Past = 0.85
    unit_score: Literal["mean", "outer"] = "outer"
    beta: Fraction = 0.7
    fusion: Literal["static", "adaptive", "average", "none"] = "static"
    gamma: Fraction = 0.7
    quantile: Fraction = 0.8
    tau: Positive = 0.15
    average: Fraction = 0.5
    orthogonality: Annotated[float, Field(ge=0.0)] = 0.0
    orthogonality_squared: bool = True
    replay_epochs: Annotated[int, Field(ge=0)] = 0
    replay_lr: Positive | None = None

    _tracker: Any = field(default=None, init=False, repr=False)
    _units: Any = field(default=None, init=False, repr=False)
    _previous: Any = field(default=None, init=False, repr=False)
    _history: Any = field(default=None, init=False, repr=False)
    _pairs: Any = field(default=(), init=False, repr=False)

    plain_first_task = False

    @property
    def old_data(self) -> OldData:
        """Memory steps for the replay stage of the -M variants, otherwise nothing."""
        return "steps" if self.replay_epochs else "none"

    def begin_task(self, task: TaskInfo, params: Parameters) -> None:
        """Remember the model before the task, start identification anew."""
        self._units = SkillUnits.build(params.names, params.shapes, self.units)
        self._previous = params.clone()
        self._tracker = ImportanceTracker(
            params.tensors,
            order=self.order,
            alpha1=self.alpha1,
            alpha2=self.alpha2,
            smoothing=self.smoothing,
            uncertainty=self.uncertainty,
        )
        self._pairs = lora_pairs(params) if self.orthogonality else ()

    def on_gradients(self, params: Parameters) -> None:
        """Add the orthogonality term's gradient, then read the importance (Eq. 5, 8-12)."""
        # averaged over the adapted matrices, as the paper's regularisation weight 0.1 assumes
        for a, b in self._pairs:
            grad_a, grad_b = orthogonality_gradients(
                a.detach(), b.detach(), squared=self.orthogonality_squared
            )
            for p, g in ((a, grad_a), (b, grad_b)):
                if p.grad is not None:
                    p.grad.add_(g, alpha=self.orthogonality / len(self._pairs))
        if self.reading == "before":
            self._tracker.update(params.tensors, params.grads)

    def on_update(self, params: Parameters) -> None:
        """The authors' timing: the new parameter with the old gradient."""
        if self.reading == "after":
            self._tracker.update(params.tensors, params.grads)

    def end_task(self, task: TaskInfo, ctx: StepContext) -> None:
        """Score the units (Eq. 6), fuse with the old model (Eq. 14-17), update the history (Eq. 13)."""
        how = self.unit_score if self.units == "rank" else "mean"
        current = self._units.reduce(self._tracker.scores(), how)
        if self._tracker.skipped:
            ctx.event("importance", skipped_steps=self._tracker.skipped)
        if self._pairs:
            penalty = sum(
                float(orthogonality_penalty(a.detach(), b.detach(), squared=self.orthogonality_squared))
                for a, b in self._pairs
            )
            ctx.event("orthogonality", weighted_penalty=self.orthogonality * penalty / len(self._pairs))
        if task.first or self._history is None:
            self._history = current
        else:
            self._fuse(current, ctx)
            self._history = cumulative(self._history, current, self.beta)
        self._previous = self._tracker = None

    @torch.no_grad()
    def _fuse(self, current: Tensor, ctx: StepContext) -> None:
        p, c = min_max(self._history), min_max(current)
        if self.fusion != "none":
            weights = self._weights(p, c)
            ctx.params.assign(blend(self._previous, ctx.params.clone(), self._units.expand(weights)))
            ctx.event("fusion", units=self._units.count, mean_weight_of_previous=float(weights.mean()))
        if self.replay_epochs and ctx.memory_size:
            only_current = (c > quantile_threshold(c, self.quantile)) & ~(
                p > quantile_threshold(p, self.quantile)
            )
            self._replay(self._units.expand(only_current.to(torch.float32)), ctx)

    def _weights(self, p: Tensor, c: Tensor) -> Tensor:
        if self.fusion == "static":
            return static_weights(p, c, gamma=self.gamma, quantile=self.quantile)
        if self.fusion == "adaptive":
            return adaptive_weights(p, c, tau=self.tau)
        return torch.full_like(p, self.average)

    def _replay(self, frozen: list[Tensor], ctx: StepContext) -> None:
        """KIF-M: train the fused model on the memory; frozen units come out bit-identical."""
        fixed = ctx.params.clone()
        # at the end of a task a schedule has brought the current rate to almost nothing
        rate = ctx.base_lr if self.replay_lr is None else self.replay_lr
        masks = [f.bool() for f in frozen]
        for _ in range(self.replay_epochs * ctx.memory_batches):
            ctx.memory_step(lr=rate, optimizer="own")
            # the value itself is put back, so that moments and weight decay cannot move it either
            values = [p.detach() for p in ctx.params.tensors]
            ctx.params.assign([torch.where(m, f, v) for m, f, v in zip(masks, fixed, values, strict=True)])
        share = (
            sum(int(m.expand(f.shape).sum()) for m, f in zip(masks, fixed, strict=True)) / ctx.params.count
        )
        ctx.event("replay stage", epochs=self.replay_epochs, frozen_share=share)

    def state(self) -> MethodState:
        """One score per unit; its size does not depend on the number of tasks."""
        return MethodState({} if self._history is None else {"history": self._history})

    def load_state(self, state: MethodState) -> None:
        """Take back the history's importance."""
        self._history = state.tensors.get("history")


def lora_pairs(params: Parameters) -> list[tuple[Tensor, Tensor]]:
    """The (A, B) pairs among the parameters: A is (rank, in), B is (out, rank)."""
    by_name = dict(zip(params.names, params.tensors, strict=True))
    return [
        (a, by_name[name.replace("lora_A", "lora_B")])
        for name, a in by_name.items()
        if "lora_A" in name and name.replace("lora_A", "lora_B") in by_name
    ]
