"""KIF, KIFLoRA and TaSL (arXiv 2408.05200): identify the knowledge of each task, then fuse.

While a task trains, the importance of every parameter is read from each step's gradient (Eq. 8-12). At its
end, skill units (Eq. 3-4) get one score each (Eq. 6), and the model before the task and the model after it
are blended unit by unit, by what mattered to the history and what mattered to the task (Eq. 15, or 16-17).
Only scores per unit outlive a task: the history's (Eq. 13), and the task's own, which enter no later task.

| symbol | setting |
| --- | --- |
| alpha1, alpha2 (Eq. 10-12) | `alpha1`, `alpha2` |
| F (Eq. 9) | `fisher`: g^2, or sum_j g_j^2 over the examples j of the step |
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

Beyond the papers: `threshold="share"` calls important the fewest units that carry `importance_share` of all
normalised importance, and `scope` takes the threshold within each linear or transformer layer.
`threshold="interpolated"` is the authors' code: a quantile between two scores, so up to one unit
more is marked.

`fisher="per_example"` is of the same loss as g: the g_j are the examples' shares of the clipped gradient, so
with one example a step it equals the batch's. The orthogonality term belongs to no example: it is in g alone.

`fusion="ema"` replaces the model after a task by the running average of the parameters over the task's steps,
started at the model before the task; that one is in it by its start and is not blended in again.
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal, final

import torch
from pydantic import Field, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from kifuse.knowledge.fusion import ParameterAverage, adaptive_weights, blend_into, case_weights
from kifuse.knowledge.importance import ImportanceTracker, cumulative, important_units, min_max
from kifuse.knowledge.projection import orthogonality_gradients, orthogonality_penalty
from kifuse.knowledge.selection import interpolated_fraction
from kifuse.knowledge.skill_units import FINER_THAN, SkillUnits
from kifuse.methods.base import (
    SETTINGS,
    Fraction,
    Method,
    MethodState,
    Need,
    NotNegative,
    OldData,
    Parameters,
    Past,
    Positive,
    StepContext,
    TaskInfo,
    kept_tensors,
    kept_under,
    prefixed,
    refuse_other_task,
    unprefixed,
)
from kifuse.methods.shown import (
    FUSION,
    HISTORY,
    HISTORY_AFTER,
    IMPORTANCE,
    MOVED,
    WEIGHT_OF_PREVIOUS,
    Event,
    Shown,
)


@final
@dataclass(kw_only=True, config=SETTINGS)
class KIF(Method):
    """Knowledge identification during training, fusion of old and new weights after it."""

    units: Literal["matrix", "rank", "element", "module", "layer"] = "matrix"
    order: Literal["first", "second", "gradient", "magnitude"] = "first"
    fisher: Literal["batch", "per_example"] = "batch"
    reading: Literal["before", "after"] = "before"
    smoothing: bool = True
    uncertainty: bool = True
    alpha1: Past = 0.85
    alpha2: Past = 0.85
    unit_score: Literal["mean", "outer"] = "outer"
    beta: Fraction = 0.7
    fusion: Literal["static", "adaptive", "average", "ema", "none"] = "static"
    gamma: Fraction = 0.7
    quantile: Fraction = 0.8
    tau: Positive = 0.15
    average: Fraction = 0.5
    ema_decay: Past = 0.99
    orthogonality: NotNegative = 0.0
    orthogonality_squared: bool = True
    replay_epochs: Annotated[int, Field(ge=0)] = 0
    replay_lr: Positive | None = None
    threshold: Literal["quantile", "interpolated", "share"] = "quantile"
    importance_share: Fraction = 0.9
    scope: Literal["global", "module", "layer"] = "global"

    _tracker: Any = field(default=None, init=False, repr=False)
    _units: Any = field(default=None, init=False, repr=False)
    _previous: Any = field(default=None, init=False, repr=False)
    _running: Any = field(default=None, init=False, repr=False)
    _history: Any = field(default=None, init=False, repr=False)
    _current: Any = field(default=None, init=False, repr=False)
    _names: Any = field(default=(), init=False, repr=False)
    _task: Any = field(default=None, init=False, repr=False)
    _pairs: Any = field(default=(), init=False, repr=False)
    _resumed: Any = field(default=None, init=False, repr=False)

    plain_first_task = False
    shown = Shown(
        series=(IMPORTANCE, HISTORY, HISTORY_AFTER, WEIGHT_OF_PREVIOUS, MOVED),
        events=(
            FUSION,
            Event(
                "replay stage",
                ("replayed the memory {epochs} times", "{frozen_share:.0%} of the parameters frozen"),
            ),
        ),
    )

    @field_validator("fisher")
    @classmethod
    def _only_the_second_order_has_curvature(cls, value: str, info: ValidationInfo) -> str:
        order = info.data.get("order", "second")
        if value != "batch" and order != "second":
            raise ValueError(f"'batch' with order {order!r}: only the second order has a Fisher term")
        return value

    @field_validator("threshold", "scope")
    @classmethod
    def _only_where_units_are_selected(cls, value: str, info: ValidationInfo) -> str:
        plain = {"threshold": "quantile", "scope": "global"}[str(info.field_name)]
        fusion = info.data.get("fusion", "static")
        if value != plain and fusion != "static" and not info.data.get("replay_epochs", 1):
            raise ValueError(f"{plain!r} with fusion {fusion!r} and no replay stage: neither has a threshold")
        return value

    @field_validator("scope")
    @classmethod
    def _only_over_finer_units(cls, value: str, info: ValidationInfo) -> str:
        if value != "global" and info.data.get("threshold") == "interpolated":
            raise ValueError("'global' with threshold 'interpolated', which is taken over the whole model")
        units = info.data.get("units", "element")
        if units not in FINER_THAN[value]:
            finer = ", ".join(FINER_THAN[value])
            raise ValueError(
                f"'global' with units {units!r}: a {value} holds several units only of the levels {finer}"
            )
        return value

    @property
    def old_data(self) -> OldData:
        """Memory steps for the replay stage of the -M variants, otherwise nothing."""
        return "steps" if self.replay_epochs else "none"

    @property
    def needs(self) -> frozenset[Need]:
        """The Fisher information of single examples is made of squares."""
        return frozenset({"squares"}) if self.fisher == "per_example" else frozenset()

    def extra_passes(self, task: TaskInfo, memory_batches: int) -> int:
        """The replay stage, from the second task on."""
        return 0 if task.first else self.replay_epochs * memory_batches

    def begin_task(self, task: TaskInfo, params: Parameters) -> None:
        """Remember the model before the task, start identification anew."""
        self._resumed, self._task, self._names = None, task.name, params.names
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
        averaged = self.fusion == "ema" and not task.first and self._history is not None
        self._running = ParameterAverage(params.tensors, self.ema_decay) if averaged else None
        self._pairs = lora_pairs(params) if self.orthogonality else ()

    def continue_task(self, task: TaskInfo, params: Parameters) -> None:
        """Go on in the middle of a task, with what `load_state` found there.

        Raises:
            ValueError: The state is of another task, of other parameters or not of a task's middle.
        """
        kept = self._resumed or {}
        refuse_other_task(self._task, task.name, middle=bool(kept))
        self.begin_task(task, params)
        self._previous = kept_under("previous", kept, params)
        self._tracker.load_state_dict(unprefixed("tracker", kept))
        if self._running is not None:
            self._running.load_state_dict(unprefixed("running", kept))

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
            self._identify(params)

    def on_update(self, params: Parameters) -> None:
        """Average the new parameters; the authors' timing: the new parameter with the old gradient."""
        if self.reading == "after":
            self._identify(params)
        if self._running is not None:
            self._running.update(params.tensors)

    def on_step(self, ctx: StepContext) -> None:
        """Log the orthogonality term beside the loss (Eq. 5)."""
        if self._pairs and ctx.logging:
            ctx.log(orthogonality=self._penalty())

    def _penalty(self) -> float:
        """The orthogonality term as it enters the loss, weight and all."""
        terms = [
            orthogonality_penalty(a.detach(), b.detach(), squared=self.orthogonality_squared)
            for a, b in self._pairs
        ]
        return self.orthogonality * float(torch.stack(terms).mean())

    def _identify(self, params: Parameters) -> None:
        if self.needs and params.squares is None:
            raise ValueError(
                "fisher 'per_example' needs the squared gradients of single examples in Parameters.squares, "
                "which the training engine gathers for a method that needs squares; found none."
            )
        self._tracker.update(params.tensors, params.grads, fisher=params.squares)

    def end_task(self, task: TaskInfo, ctx: StepContext) -> None:
        """Score the units (Eq. 6), fuse with the old model (Eq. 14-17), update the history (Eq. 13)."""
        how = self.unit_score if self.units == "rank" else "mean"
        scores = self._tracker.scores(last=True)
        self._current = current = self._units.reduce(scores, how)
        self._note(ctx)
        ctx.measure(importance=ctx.params.means(scores), moved=ctx.params.moved_from(self._previous))
        del scores
        if task.first or self._history is None:
            self._history = current.clone()
        else:
            history = self._history.to(current.device)
            if history.shape != current.shape:
                raise ValueError(
                    f"the history has {history.numel()} skill units, the model {current.numel()}; "
                    "importance can be carried on only with the same trainable parameters and units."
                )
            ctx.measure(history=self._per_tensor(history, ctx))
            self._fuse(history, current, ctx)
            self._history = cumulative(history, current, self.beta)
        ctx.measure(history_after=self._per_tensor(self._history, ctx))
        self._previous = self._tracker = self._running = self._task = None

    def _note(self, ctx: StepContext) -> None:
        """Record what identification left out, and the size of the orthogonality term."""
        if self._tracker.skipped:
            ctx.event("importance", skipped_steps=self._tracker.skipped)
        if self._pairs:
            ctx.event("orthogonality", weighted_penalty=self._penalty())

    def _per_tensor(self, values: Tensor, ctx: StepContext) -> Tensor:
        """Unit values as one number per trainable tensor, the mean over its scalars."""
        return ctx.params.means(self._units.expand(values))

    def _fuse(self, history: Tensor, current: Tensor, ctx: StepContext) -> None:
        p, c = min_max(history), min_max(current)
        before = now = None
        if self.fusion == "static" or self.replay_epochs:
            before, now = self._important(p), self._important(c)
        if self.fusion != "none":
            weights, event = self._weights(p, c, before, now)
            if self._running is not None:
                ctx.params.assign(self._running.average())
            else:
                values = [p.detach() for p in ctx.params.tensors]
                blend_into(values, self._previous, self._units.expand(weights))
            event["mean_weight_of_previous"] = float(weights.mean())
            ctx.event("fusion", units=self._units.count, **event)
            ctx.log(mean_weight_of_previous=event["mean_weight_of_previous"])
            ctx.measure(weight_of_previous=self._per_tensor(weights, ctx))
        if before is not None and now is not None and self.replay_epochs and ctx.memory_size:
            self._replay(self._units.expand(now & ~before), ctx)

    def _weights(
        self, p: Tensor, c: Tensor, before: Tensor | None, now: Tensor | None
    ) -> tuple[Tensor, dict[str, Any]]:
        """The weight of each unit's previous value, and what to record of it."""
        if before is not None and now is not None and self.fusion == "static":
            cases = {
                "kept": before & ~now,
                "overwritten": now & ~before,
                "shared": before & now,
                "neither": ~(before | now),
            }
            counts = {name: int(case.sum()) for name, case in cases.items()}
            return case_weights(before, now, gamma=self.gamma), counts
        if self.fusion == "adaptive":
            weights = adaptive_weights(p, c, tau=self.tau)
            low, high = torch.aminmax(weights)
            return weights, {"min_weight_of_previous": float(low), "max_weight_of_previous": float(high)}
        if self._running is not None:
            # the running average began at the previous model
            return torch.full_like(p, self.ema_decay**self._running.steps), {"steps": self._running.steps}
        return torch.full_like(p, self.average), {}

    def _important(self, values: Tensor) -> Tensor:
        """Which units matter, by normalised importance: above the threshold of their scope (Eq. 15)."""
        if self.threshold == "share":
            return important_units(self._units, values, share=self.importance_share, scope=self.scope)
        fraction = 1.0 - self.quantile
        if self.threshold == "interpolated":
            fraction = interpolated_fraction(values.numel(), self.quantile)
        return important_units(self._units, values, fraction=fraction, scope=self.scope)

    def _replay(self, frozen: list[Tensor], ctx: StepContext) -> None:
        """KIF-M: train the fused model on the memory; frozen units come out bit-identical."""
        fixed = ctx.params.clone()

        def hold(params: Parameters) -> None:
            """No gradient enters the moments of a frozen parameter."""
            for p, mask in zip(params.tensors, frozen, strict=True):
                if p.grad is not None:
                    p.grad.masked_fill_(mask, 0.0)

        # at the end of a task a schedule has brought the current rate to almost nothing
        rate = ctx.base_lr if self.replay_lr is None else self.replay_lr
        for _ in range(self.replay_epochs * ctx.memory_batches):
            ctx.memory_step(lr=rate, optimizer="own", before=hold)
            # the value itself is put back, so that weight decay cannot move it either
            values = [p.detach() for p in ctx.params.tensors]
            ctx.params.assign([torch.where(m, f, v) for m, f, v in zip(frozen, fixed, values, strict=True)])
        held = sum(int(m.expand(f.shape).sum()) for m, f in zip(frozen, fixed, strict=True))
        ctx.event("replay stage", epochs=self.replay_epochs, frozen_share=held / ctx.params.count)

    def state(self) -> MethodState:
        """At the end of a task two scores per unit, whatever the number of tasks; in its middle, all of it.

        `history` is the cumulative importance with the last task in it, `current` the last task's own, both
        `(units,)`; `values` names the level of the units and the parameters they were made of.
        """
        own = {"history": self._history, "current": self._current}
        tensors = {name: scores for name, scores in own.items() if scores is not None}
        values: dict[str, Any] = {"units": self.units, "parameters": list(self._names)} if self._names else {}
        if self._task is not None:
            values["task"] = self._task
        if self._tracker is None:
            return MethodState({**tensors, **(self._resumed or {})}, values)
        tensors |= kept_tensors("previous", self._names, self._previous)
        tensors |= prefixed("tracker", self._tracker.state_dict())
        if self._running is not None:
            tensors |= prefixed("running", self._running.state_dict())
        return MethodState(tensors, values)

    def load_state(self, state: MethodState) -> None:
        """Take back the importance, and what was gathered in the middle of a task."""
        self._history, self._current = state.tensors.get("history"), state.tensors.get("current")
        self._names = tuple(state.values.get("parameters", ()))
        self._task = state.values.get("task")
        self._resumed = {k: v for k, v in state.tensors.items() if k not in ("history", "current")}
        self._previous = self._tracker = self._running = None


def lora_pairs(params: Parameters) -> list[tuple[Tensor, Tensor]]:
    """The (A, B) pairs among the parameters: A is (rank, in), B is (out, rank)."""
    by_name = dict(zip(params.names, params.tensors, strict=True))
    return [
        (a, by_name[name.replace("lora_A", "lora_B")])
        for name, a in by_name.items()
        if "lora_A" in name and name.replace("lora_A", "lora_B") in by_name
    ]
