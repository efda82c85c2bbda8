r"""On-policy repair: after a task the model is drawn back to what it would have said before it.

The task is learned as usual. Then, on questions x that are not the task's, the model answers in its own
words, y ~ q_theta(. | x), and is drawn to the model before the task, p, over the tokens of its answers:

    L = 1/N sum_t D( q_theta(. | x, y_<t) , p(. | x, y_<t) ),      `steps` times

with N the number of answer tokens of a batch. Answers of its own keep it where it really is: on text that it
would never write there is little to repair. The questions are those that the memory holds, without their
labels: general ones (`memory.source: generic`), such that the model wrote (`generated`), or those of earlier
tasks (`real`). In a run the first task has none yet and is ordinary training.

| symbol | setting |
| --- | --- |
| D | `direction`; KL(q \|\| p) is `reverse` |
"""

from __future__ import annotations

from typing import Annotated, Any, final

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from kifuse.methods.base import SETTINGS, Method, Need, OldData, Positive
from kifuse.methods.context import Batch, Context, TaskInfo
from kifuse.methods.sampled import Direction, Sampling, divergence
from kifuse.methods.shown import Event, Shown

_REPAIRED = Event(
    "on-policy repair", ("{steps} steps of repair", "divergence {first:.3f} at first", "{last:.3f} at last")
)


@final
@dataclass(kw_only=True, config=SETTINGS)
class OnPolicyRepair(Method):
    """After each task, distillation from the model before it on answers of the present one."""

    steps: Annotated[int, Field(ge=1)] = 50
    learning_rate: Positive | None = None
    direction: Direction = "reverse"
    top_k: Annotated[int, Field(ge=1)] = 50
    temperature: Positive = 1.0
    most: Annotated[int, Field(ge=1)] = 128

    plain_first_task = True
    shown = Shown(events=(_REPAIRED,))

    def __post_init__(self) -> None:
        self._repairing = False
        self._divergences: list[float] = []

    @property
    def old_data(self) -> OldData:
        """The memory's questions are answered in steps of their own."""
        return "steps"

    @property
    def needs(self) -> frozenset[Need]:
        """Answers are sampled, and the weights before the task are the teacher's."""
        return frozenset({"answers", "before task"})

    def extra_passes(self, task: TaskInfo, memory_batches: int) -> int:
        """Each step of repair is three passes: the memory step's, the student's, and the teacher's third."""
        return 2 * self.steps + self.steps // 3 if memory_batches else 0

    def loss(self, ctx: Context, model: Any, batch: Batch, outputs: Any) -> Tensor:
        """The plain loss; in repair the divergence from the model before the task."""
        if not self._repairing:
            return ctx.target_loss
        answered = ctx.sampled(batch, Sampling(self.top_k, self.temperature), self.most)
        student = ctx.targets(answered, ctx.train_forward(answered))
        teacher = ctx.targets(answered, ctx.forward(answered, at="before task"))
        terms = divergence(
            torch.cat([logits for logits, _ in student]),
            torch.cat([logits for logits, _ in teacher]),
            self.direction,
        )
        self._divergences.append(float(terms.detach().mean()))
        labels = ctx.target_counts(batch).sum()
        return ctx.mean_over_targets(terms * (labels / len(terms)))

    def end_task(self, ctx: Context) -> None:
        """Repair."""
        if not ctx.memory_size:
            return
        self._repairing, self._divergences = True, []
        rate = ctx.base_lr if self.learning_rate is None else self.learning_rate
        try:
            for _ in range(self.steps):
                ctx.memory_step(lr=rate, optimizer="own")
        finally:
            self._repairing = False
        found = self._divergences
        ctx.event(_REPAIRED.kind, steps=self.steps, first=found[0], last=found[-1])
