"""KIF, KIFLoRA and TaSL (arXiv 2408.05200): identify the knowledge of each task, then fuse.

While a task trains, each step's gradient updates the importance of every parameter (Eq. 8-12). At the end of
the task, each skill unit (Eq. 3-4) gets one score (Eq. 6). Then the model before the task and the model after
it are blended unit by unit, according to the units' importance for the history and for the task (Eq. 15, or
16-17). Only scores per unit are kept after a task: those of the history (Eq. 13), and the task's own, which
no later task uses.

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
is replayed, while the units that are important only to the current task stay frozen.

The authors' code reads the parameter after the optimizer has changed it (`reading="after"`). The papers' |w
g| takes both factors at the same point (`reading="before"`, the default).

Beyond the papers: `threshold="share"` marks as important the fewest units that carry `importance_share` of
all normalised importance, and `scope` computes the threshold within each linear or transformer layer.
`threshold="interpolated"` is what the authors' code does: its quantile lies between two scores, so up to one
more unit is marked.

`fisher="per_example"` uses the same loss as g: the g_j are the examples' shares of the clipped gradient. So
with one example per step it equals the batch's. The orthogonality term belongs to no example: only g contains
it.

`fusion="ema"` replaces the model after a task by the running average of the parameters over the task's steps.
The average starts at the model before the task and so contains it; it is not blended with that model again.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    Batch,
    Context,
    Fraction,
    Method,
    Need,
    NotNegative,
    OldData,
    Parameters,
    Past,
    Positive,
    TaskInfo,
)
from kifuse.methods.kept import Kept, MethodState, OfTask, Unsaved
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
    """Identifies knowledge during training, and fuses old and new weights after it."""

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
    orthogonality_over: Literal["pairs", "matrices"] = "pairs"
    orthogonality_clipped: bool = False
    replay_epochs: Annotated[int, Field(ge=0)] = 0
    replay_lr: Positive | None = None
    threshold: Literal["quantile", "interpolated", "share"] = "quantile"
    importance_share: Fraction = 0.9
    scope: Literal["global", "module", "layer"] = "global"

    _history: Kept[Tensor | None] = None
    """Cumulative importance that includes the last task, `(units,)`."""
    _current: Kept[Tensor | None] = None
    """Importance for the last task alone, `(units,)`."""
    _parameters: Kept[list[str] | None] = None
    """Names of the parameters that the units consist of."""
    _previous: OfTask[list[Tensor]]
    _tracker: OfTask[ImportanceTracker]
    _running: OfTask[ParameterAverage | None] = None
    _units: Unsaved[SkillUnits]
    _pairs: Unsaved[Sequence[tuple[Tensor, Tensor]]] = ()

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
        """Memory steps for the replay stage of the -M variants, otherwise none."""
        return "steps" if self.replay_epochs else "none"

    @property
    def needs(self) -> frozenset[Need]:
        """Squared gradients, if the Fisher information of single examples is used."""
        return frozenset({"squares"}) if self.fisher == "per_example" else frozenset()

    def extra_passes(self, task: TaskInfo, memory_batches: int) -> int:
        """The replay stage, from the second task on."""
        return 0 if task.first else self.replay_epochs * memory_batches

    def begin_task(self, ctx: Context) -> None:
        """Copy the model before the task, and start a new identification."""
        params = ctx.params
        self._parameters = list(params.names)
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
        averaged = self.fusion == "ema" and not ctx.task.first and self._history is not None
        self._running = ParameterAverage(params.tensors, self.ema_decay) if averaged else None
        self._pairs = lora_pairs(params) if self.orthogonality else ()

    @property
    def has_loss(self) -> bool:
        """Whether the orthogonality term is part of the loss, and so is clipped with it."""
        return self.orthogonality > 0 and self.orthogonality_clipped

    def loss(self, ctx: Context, model: Any, batch: Batch, outputs: Any) -> Tensor:
        """Add the orthogonality term (Eq. 5); each micro-batch adds its share of it."""
        if not self._pairs:
            return ctx.target_loss
        terms = [orthogonality_penalty(a, b, squared=self.orthogonality_squared) for a, b in self._pairs]
        penalty = self._weight_of_pair * torch.stack(terms).sum()
        return ctx.target_loss + ctx.mean_over_targets(penalty.expand(int(ctx.target_counts(batch).sum())))

    @property
    def _weight_of_pair(self) -> float:
        """Weight of one pair's term: mean over adapted layers (the paper), or over A and B separately."""
        return self.orthogonality / (len(self._pairs) * (2 if self.orthogonality_over == "matrices" else 1))

    def on_gradients(self, ctx: Context) -> None:
        """Add the orthogonality term's gradient, then read the importance (Eq. 5, 8-12)."""
        for a, b in () if self.orthogonality_clipped else self._pairs:
            grad_a, grad_b = orthogonality_gradients(
                a.detach(), b.detach(), squared=self.orthogonality_squared
            )
            for p, g in ((a, grad_a), (b, grad_b)):
                if p.grad is not None:
                    p.grad.add_(g, alpha=self._weight_of_pair)
        if self.reading == "before":
            self._identify(ctx)

    def on_update(self, ctx: Context) -> None:
        """Average the new parameters; with the authors' timing, use the new parameter and old gradient."""
        if self.reading == "after":
            self._identify(ctx)
        if self._running is not None:
            self._running.update(ctx.params.tensors)

    def on_step(self, ctx: Context) -> None:
        """Log the orthogonality term beside the loss (Eq. 5)."""
        if self._pairs and ctx.logging:
            ctx.log(orthogonality=self._penalty())

    def _penalty(self) -> float:
        """The orthogonality term as it enters the loss, including its weight."""
        terms = [
            orthogonality_penalty(a.detach(), b.detach(), squared=self.orthogonality_squared)
            for a, b in self._pairs
        ]
        return self._weight_of_pair * float(torch.stack(terms).sum())

    def _identify(self, ctx: Context) -> None:
        fisher = ctx.squares if self.needs else None
        self._tracker.update(ctx.params.tensors, ctx.params.grads, fisher=fisher)

    def end_task(self, ctx: Context) -> None:
        """Score the units (Eq. 6), fuse with the old model (Eq. 14-17), update the history (Eq. 13)."""
        how = self.unit_score if self.units == "rank" else "mean"
        scores = self._tracker.scores(last=True)
        self._current = current = self._units.reduce(scores, how)
        self._note(ctx)
        ctx.measure(importance=ctx.params.means(scores), moved=ctx.params.moved_from(self._previous))
        del scores
        if ctx.task.first or self._history is None:
            self._history = current.clone()
        else:
            history = self._history.to(current.device)
            if history.shape != current.shape:
                raise ValueError(
                    f"the history has {history.numel()} skill units, the model {current.numel()}. "
                    "Importance can be used further only with the same trainable parameters and units."
                )
            ctx.measure(history=self._per_tensor(history, ctx))
            self._fuse(history, current, ctx)
            self._history = cumulative(history, current, self.beta)
        ctx.measure(history_after=self._per_tensor(self._history, ctx))

    def _note(self, ctx: Context) -> None:
        """Record the steps that identification skipped, and the size of the orthogonality term."""
        if self._tracker.skipped:
            ctx.event("importance", skipped_steps=self._tracker.skipped)
        if self._pairs:
            ctx.event("orthogonality", weighted_penalty=self._penalty())

    def _per_tensor(self, values: Tensor, ctx: Context) -> Tensor:
        """Turn unit values into one number per trainable tensor: the mean over its scalars."""
        return ctx.params.means(self._units.expand(values))

    def _fuse(self, history: Tensor, current: Tensor, ctx: Context) -> None:
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
        """Return the weight of each unit's previous value, and what to record about the weights."""
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
            # the running average started at the previous model
            return torch.full_like(p, self.ema_decay**self._running.steps), {"steps": self._running.steps}
        return torch.full_like(p, self.average), {}

    def _important(self, values: Tensor) -> Tensor:
        """Mark important units by normalised importance: above the threshold of their scope (Eq. 15)."""
        if self.threshold == "share":
            return important_units(self._units, values, share=self.importance_share, scope=self.scope)
        fraction = 1.0 - self.quantile
        if self.threshold == "interpolated":
            fraction = interpolated_fraction(values.numel(), self.quantile)
        return important_units(self._units, values, fraction=fraction, scope=self.scope)

    def _replay(self, frozen: list[Tensor], ctx: Context) -> None:
        """KIF-M: train the fused model on the memory; frozen units stay bit-identical."""
        fixed = ctx.params.clone()
        self._pairs = []  # this stage trains only on the labels

        def hold(params: Parameters) -> None:
            """Keep gradients of frozen parameters out of the optimizer's moments."""
            for p, mask in zip(params.tensors, frozen, strict=True):
                if p.grad is not None:
                    p.grad.masked_fill_(mask, 0.0)

        # at the end of a task, a schedule has lowered the current rate to almost 0
        rate = ctx.base_lr if self.replay_lr is None else self.replay_lr
        for _ in range(self.replay_epochs * ctx.memory_batches):
            ctx.memory_step(lr=rate, optimizer="own", before=hold)
            # restore the value itself, so that weight decay cannot change it either
            values = [p.detach() for p in ctx.params.tensors]
            ctx.params.assign([torch.where(m, f, v) for m, f, v in zip(frozen, fixed, values, strict=True)])
        held = sum(int(m.expand(f.shape).sum()) for m, f in zip(frozen, fixed, strict=True))
        ctx.event("replay stage", epochs=self.replay_epochs, frozen_share=held / ctx.params.count)

    def state(self) -> MethodState:
        """Return the declared state, and the level of the units that the scores belong to."""
        state = super().state()
        if state.values.get("parameters"):
            state.values["units"] = self.units
        return state


def lora_pairs(params: Parameters) -> list[tuple[Tensor, Tensor]]:
    """The (A, B) pairs among the parameters: A is (rank, in), B is (out, rank)."""
    by_name = dict(zip(params.names, params.tensors, strict=True))
    return [
        (a, by_name[name.replace("lora_A", "lora_B")])
        for name, a in by_name.items()
        if "lora_A" in name and name.replace("lora_A", "lora_B") in by_name
    ]
