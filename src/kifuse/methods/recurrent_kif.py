"""Recurrent-KIF (arXiv 2502.17510, Algorithm 1): inner loop, memory loop and masked fusion in each round.

Each task has many rounds. A round does the following, from the second task on:

1. inner loop, from theta_b: Q steps on the current task; I_in <- a1 I_in + (1 - a1) |w g| (Eq. 3-4), reset in
   each round; tau_in = theta_Q - theta_b (Eq. 2).
2. outer loop, from theta_Q: M steps on the memory; I_out <- a2 |w g| + (1 - a2) I_out (Eq. 6-7: here a2 is
   the weight of the new value), kept for the whole task; tau_out = theta_M - theta_Q (Eq. 5).
3. fusion: m_in, m_out mark the most important 20% of all parameters; theta_{b+1} = theta_b + m_in tau_in +
   m_out tau_out (Eq. 8-9).

| symbol | setting |
| --- | --- |
| Q, M | `inner_steps`, `outer_steps` |
| a1, a2 | `alpha_inner`, `alpha_outer` |
| beta_out | `outer_lr` (None: the rate of the inner step just taken; `next`: that of the next one) |
| 1 - 20% | `quantile` |

The paper's ablations (its names are in brackets) are settings too. Where the paper names a variant without a
formula, the formula here is our reading.

- `outer_importance="static"` (-DIE): I_out is measured in the memory steps of the task's first round, near
  the weights that the task started with and without extra cost; then it stays fixed for the task.
- `masks="none"` (-KI): no identification; the result is theta_b + tau_in + tau_out, which equals theta_M bit
  for bit.
- `masks="global"` (+GM): one weight each for all parameters, from the round's total importances s_in and
  s_out: theta_b + (s_in tau_in + s_out tau_out) / (s_in + s_out).
- `masks="soft"` (+Adaptive): m_in = sigmoid((Norm(I_in) - Norm(I_out)) / `tau`) and m_out = 1 - m_in for each
  scalar, where Norm is min-max over the model. This is the published formula: KIF's Eq. 16-17 with single
  scalars as units.
- `share=False` (-Share): m_in := 0 where both masks are 1.
- `importance`: |g| (`gradient`), |w g - (w g)^2 / 2| (`second`) or |w| (`magnitude`) instead of |w g|.
- `smoothing=False`: only the importance of the last step.
- `rounds="one"` (as in TaSL): one inner loop over the whole task, then as many memory steps as `many` rounds
  take, at the same rates, then one fusion.

Beyond the paper: `threshold="share"` marks the fewest parameters that carry `importance_share` of the total
importance, instead of a fixed fraction. `threshold="interpolated"` uses a quantile between two scores, as the
authors' code does, and marks up to one more parameter. `scope` applies the threshold within each linear layer
(`module`) or transformer layer (`layer`).

The published code differs from the paper in these points, each of which is a setting:

- `fusion="published"`: 0.4/0.6 where both masks are 1, 0.5/0.5 where neither is 1, so nothing is dropped;
- `score="uncertainty"`: Ibar * Ubar; 0.85 for all averages is `alpha_inner=0.85, alpha_outer=0.15`;
- `threshold="interpolated"` and `outer_steps=4`;
- `reading="after"`: |w g| with the parameter after the optimizer's change and the gradient from before it;
- `outer_lr="next"`: the schedule has already advanced when memory steps are taken. In fp16 the code uses a
  second optimizer whose schedule stays at the 0 of a warm-up: `outer_optimizer="own", outer_lr=0.0`, so that
  memory steps only measure importance;
- `outer_loss_weight=0.25`: the loss of a memory step is divided by the accumulation factor 4, although each
  is a separate step;
- `last_round="left"`: a last round of fewer than Q steps is not fused (seen in the same authors' code of
  AIMMerging, which has this loop).

These choices are deliberate: the parameters jump at a fusion, and `moments` says whether the optimizer's
moments are kept or reset there. `outer_optimizer` says whether memory steps share the moments. By default the
last round of a task may be shorter than Q steps, so that every step is fused. By default a memory step does
not use the rate of the next step, which a schedule may have lowered to 0.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, final

import torch
from pydantic import Field, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from kifuse.knowledge.chunks import FlatCopy, split
from kifuse.knowledge.fusion import soft_masks, total_weights
from kifuse.knowledge.importance import ImportanceTracker
from kifuse.knowledge.selection import interpolated_fraction, scope_groups, thresholds
from kifuse.methods.base import (
    SETTINGS,
    Context,
    Fraction,
    Method,
    NotNegative,
    OldData,
    Parameters,
    Positive,
    TaskInfo,
)
from kifuse.methods.kept import OfTask
from kifuse.methods.rounds import Mask, Rounds, above, part_of
from kifuse.methods.shown import MOVED, Event, Series, Shown

BOTH_AND_NEITHER = {"paper": ((1.0, 1.0), (0.0, 0.0)), "published": ((0.4, 0.6), (0.5, 0.5))}
"""Weights of (tau_in, tau_out) where both masks are 1, and where neither is 1."""


@final
@dataclass(kw_only=True, config=SETTINGS)
class RecurrentKIF(Method):
    """Repeated rounds: inner loop on the task, outer loop on the memory, masked fusion."""

    inner_steps: Annotated[int, Field(ge=1)] = 8
    outer_steps: Annotated[int, Field(ge=0)] = 1
    outer_lr: NotNegative | Literal["next"] | None = None
    outer_optimizer: Literal["shared", "own"] = "shared"
    outer_loss_weight: Positive = 1.0
    moments: Literal["keep", "reset"] = "keep"
    fusion: Literal["paper", "published"] = "paper"
    score: Literal["smoothed", "uncertainty"] = "smoothed"
    importance: Literal["first", "second", "gradient", "magnitude"] = "first"
    reading: Literal["before", "after"] = "before"
    alpha_inner: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.55
    alpha_outer: Annotated[float, Field(gt=0.0, le=1.0)] = 0.55
    quantile: Fraction = 0.8
    smoothing: bool = True
    outer_importance: Literal["dynamic", "static"] = "dynamic"
    masks: Literal["hard", "soft", "global", "none"] = "hard"
    tau: Positive = 0.15
    share: bool = True
    rounds: Literal["many", "one"] = "many"
    last_round: Literal["fused", "left"] = "fused"
    threshold: Literal["quantile", "interpolated", "share"] = "quantile"
    importance_share: Fraction = 0.9
    scope: Literal["global", "module", "layer"] = "global"

    _gathered: OfTask[Any] = None
    """A `Rounds` object; None in the first task, which has nothing to fuse with."""

    shown = Shown(
        series=(
            Series(
                "inner_importance",
                "Importance to the new task",
                "Where the loss of the task being learned was most sensitive, in the inner loop.",
                beside="moved",
            ),
            Series(
                "outer_importance",
                "Importance to earlier tasks",
                "Where the loss of remembered examples was most sensitive while the row's task was learned.",
                drift_from="outer_importance",
            ),
            Series(
                "mask_in",
                "Taken from the new task",
                "Share of the parameters whose change in the inner loop was kept, averaged over fusions.",
                unit="share of parameters",
                fused="new",
            ),
            Series(
                "mask_out",
                "Taken from memory",
                "Share of the parameters whose change on remembered examples was kept, "
                "averaged over fusions.",
                unit="share of parameters",
                fused="old",
            ),
            Series("mask_both", fused="both"),
            MOVED,
        ),
        events=(
            Event(
                "fusions",
                ("{rounds} fusion(s)", "both masks on {mask_overlap:.1%} of the parameters"),
                fusion_of="parameters",
            ),
        ),
        logged={"fusions": "{fusions} fusion(s) in this task"},
    )

    plain_first_task = True

    @field_validator("smoothing")
    @classmethod
    def _variation_needs_steps(cls, value: bool, info: ValidationInfo) -> bool:
        if not value and info.data.get("score") == "uncertainty":
            raise ValueError("true with score 'uncertainty': the last step alone has no variation")
        return value

    @field_validator("masks")
    @classmethod
    def _published_masks_are_hard(cls, value: str, info: ValidationInfo) -> str:
        if value != "hard" and info.data.get("fusion") == "published":
            raise ValueError("'hard' with fusion 'published', which gives weights to the cases of two masks")
        return value

    @field_validator("last_round")
    @classmethod
    def _one_round_is_fused(cls, value: str, info: ValidationInfo) -> str:
        if value != "fused" and info.data.get("rounds") == "one":
            raise ValueError("'fused' with rounds 'one', which fuses at the end of the task and nowhere else")
        return value

    @field_validator("share", "threshold", "scope")
    @classmethod
    def _only_with_hard_masks(cls, value: Any, info: ValidationInfo) -> Any:
        plain = {"share": True, "threshold": "quantile", "scope": "global"}[str(info.field_name)]
        kind = info.data.get("masks", "hard")
        if value != plain and kind != "hard":
            expected = "true" if plain is True else repr(plain)
            raise ValueError(f"{expected} with masks {kind!r}: only hard masks select parameters")
        if info.field_name == "scope" and value != plain and info.data.get("threshold") == "interpolated":
            raise ValueError("'global' with threshold 'interpolated', which is taken over the whole model")
        return value

    @property
    def old_data(self) -> OldData:
        """Memory batches, in separate steps."""
        return "steps"

    def extra_passes(self, task: TaskInfo, memory_batches: int) -> int:
        """M memory steps per round, from the second task on."""
        whole, rest = divmod(task.steps, self.inner_steps)
        rounds = whole + (rest > 0 and self.last_round == "fused")
        return 0 if task.first else rounds * self.outer_steps

    def begin_task(self, ctx: Context) -> None:
        """Start the first round; the first task has nothing to fuse with."""
        params = ctx.params
        if ctx.task.first:
            return
        self._gathered = Rounds(
            inner=self._new_tracker(params, self.alpha_inner),
            # the paper's a2 is the weight of the new value, the tracker's alpha that of the old one
            outer=self._new_tracker(params, 1.0 - self.alpha_outer),
            start=FlatCopy(params.tensors),
            task_start=[p.detach().to("cpu", copy=True) for p in params.tensors],
            groups=scope_groups(params.names, params.shapes, self.scope),
        )

    def _new_tracker(self, params: Parameters, alpha: float) -> ImportanceTracker:
        return ImportanceTracker(
            params.tensors,
            order=self.importance,
            alpha1=alpha,
            alpha2=alpha,
            smoothing=self.smoothing,
            uncertainty=self.score == "uncertainty",
        )

    def on_gradients(self, ctx: Context) -> None:
        """Read the inner importance (Eq. 3-4)."""
        if self.reading == "before":
            self._read_inner(ctx)

    def on_update(self, ctx: Context) -> None:
        """With the authors' timing, read the importance from the new parameter and the old gradient."""
        if self.reading == "after":
            self._read_inner(ctx)

    def _read_inner(self, ctx: Context) -> None:
        if self._gathered is not None:
            self._gathered.inner.update(ctx.params.tensors, ctx.params.grads)

    def on_step(self, ctx: Context) -> None:
        """Close the round after Q inner steps, and at the end of the task."""
        if self._gathered is None or not ctx.memory_size:
            return
        last = ctx.step == ctx.task.steps
        if ctx.step % self.inner_steps == 0 or (last and self.last_round == "fused"):
            self._gathered.rates.append(ctx.next_lr if self.outer_lr == "next" else ctx.lr)
            if self.rounds == "many" or last:
                self._close_round(ctx)
        if ctx.logging and self._gathered.fused_at:
            self._log_masks(ctx)

    @torch.no_grad()
    def _close_round(self, ctx: Context) -> None:
        task, params = self._gathered, ctx.params
        inner_end = FlatCopy(params.tensors)
        self._outer_loop(ctx)
        if self.masks == "none":
            task.keep(params)
        else:
            both, neither = BOTH_AND_NEITHER[self.fusion]
            task.fuse(params, inner_end, *self._masks(), share=self.share, both=both, neither=neither)
        if self.moments == "reset":
            ctx.reset_moments()
        task.fused_at.append(ctx.step)
        task.inner.reset()
        ctx.log(fusions=len(task.fused_at))

    def _log_masks(self, ctx: Context) -> None:
        """Log the means of the masks and of their product, over all parameters and the rounds so far."""
        task = self._gathered
        scalars = ctx.params.count * len(task.fused_at)
        mask_in, mask_out, both = (task.mask_means * task.sizes).sum(dim=1).tolist()
        ctx.log(mask_in=mask_in / scalars, mask_out=mask_out / scalars, mask_overlap=both / scalars)

    def _outer_loop(self, ctx: Context) -> None:
        """Take M memory steps for each Q inner steps, and read their importance (Eq. 6-7)."""
        read = None if self.outer_importance == "static" and self._gathered.fused_at else self._read_outer
        for rate in self._gathered.rates:
            for _ in range(self.outer_steps):
                with torch.enable_grad():
                    ctx.memory_step(
                        lr=self.outer_lr if isinstance(self.outer_lr, float) else rate,
                        optimizer=self.outer_optimizer,
                        weight=self.outer_loss_weight,
                        before=read if self.reading == "before" else None,
                        after=read if self.reading == "after" else None,
                    )
        self._gathered.rates.clear()

    def _read_outer(self, params: Parameters) -> None:
        self._gathered.outer.update(params.tensors, params.grads)

    def _masks(self) -> tuple[Mask, Mask]:
        """The masks of the round (Eq. 8), or the weights that replace them."""
        row_in, row_out = self._gathered.inner.flat_scores(), self._gathered.outer.flat_scores()
        if self.masks == "soft":
            soft_in, soft_out = soft_masks(row_in, row_out, tau=self.tau)
            return part_of(soft_in), part_of(soft_out)
        if self.masks == "global":
            return total_weights(row_in, row_out)
        return self._select(row_in), self._select(row_out)

    def _select(self, row: Tensor) -> Mask:
        """Make a mask (Eq. 8): 1 where the importance lies above the threshold, else 0."""
        by_share, task = self.threshold == "share", self._gathered
        fraction = 1.0 - self.quantile
        if self.threshold == "interpolated":
            fraction = interpolated_fraction(row.numel(), self.quantile)
        limits = thresholds(
            split(row, task.shapes) if task.groups else [row],
            fraction=None if by_share else fraction,
            share=self.importance_share if by_share else None,
            groups=task.groups,
        )
        return above(row, limits)

    def end_task(self, ctx: Context) -> None:
        """Fuse the last steps if training ended before they were fused, and record the fusions."""
        if (
            self._gathered is not None
            and ctx.memory_size
            and self.last_round == "fused"
            and ctx.step > max(self._gathered.fused_at, default=0)
        ):
            if ctx.step % self.inner_steps:
                self._gathered.rates.append(ctx.lr)
            self._close_round(ctx)
        if self._gathered is not None and self._gathered.fused_at:
            self._record(ctx)

    def _record(self, ctx: Context) -> None:
        task, rounds = self._gathered, len(self._gathered.fused_at)
        mask_in, mask_out, both = task.mask_means / rounds
        ctx.event(
            "fusions",
            rounds=rounds,
            steps=task.fused_at,
            mask_overlap=float((both * task.sizes).sum() / ctx.params.count),
            skipped_inner=task.inner.skipped,
            skipped_outer=task.outer.skipped,
        )
        self._log_masks(ctx)
        ctx.measure(
            inner_importance=task.score_means[0],
            outer_importance=task.score_means[1],
            mask_in=mask_in,
            mask_out=mask_out,
            mask_both=both,
            moved=ctx.params.moved_from(task.task_start),
        )
