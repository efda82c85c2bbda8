r"""On-policy repair: after a task, the model is pulled back to the predictions of the model before the task.

The task is learned as usual. After that, the model answers prompts x that do not come from the task in its
own words, y ~ q_theta(. | x). It is pulled towards the model before the task, p, over the tokens of its
answers:

    L = sum_r n_r / N 1/|y_r| sum_t D( q_theta(. | x_r, y_<t) , p(. | x_r, y_<t) ),      `steps` times

where n_r is the number of label tokens of the memory's example r, and N that of the batch. The model's own
answers show where it really is: text that it would never write has little to repair. The prompts are those in
the memory, without their labels: general ones (`memory.source: generic`), prompts that the model wrote
(`generated`), or those of earlier tasks (`real`). In a run, the memory is empty during the first task, so the
first task is ordinary training.

| symbol | setting |
| --- | --- |
| D | `direction`; KL(q \|\| p) is `reverse` |
"""

from __future__ import annotations

from typing import Annotated, Any, final

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from kifuse.methods.base import SETTINGS, Method, Need, OldData, Positive
from kifuse.methods.context import Batch, Context, TaskInfo
from kifuse.methods.kept import Unsaved
from kifuse.methods.sampled import Direction, Sampling, mean_by_rows
from kifuse.methods.shown import Event, Shown

_REPAIRED = Event(
    "on-policy repair", ("{steps} steps of repair", "divergence {first:.3f} at first", "{last:.3f} at last")
)


@final
@dataclass(kw_only=True, config=SETTINGS)
class OnPolicyRepair(Method):
    """After each task, distillation from the model before it, on answers that the present model samples."""

    steps: Annotated[int, Field(ge=1)] = 50
    learning_rate: Positive | None = None
    direction: Direction = "reverse"
    top_k: Annotated[int, Field(ge=1)] = 50
    temperature: Positive = 1.0
    most: Annotated[int, Field(ge=1)] = 128

    plain_first_task = True
    shown = Shown(events=(_REPAIRED,))
    _repairing: Unsaved[bool] = False
    _divergences: Unsaved[list[float]]

    @property
    def old_data(self) -> OldData:
        """The memory's prompts are answered in separate steps."""
        return "steps"

    @property
    def needs(self) -> frozenset[Need]:
        """Sampled answers, and the weights before the task, which are the teacher's."""
        return frozenset({"answers", "before task"})

    def extra_passes(self, task: TaskInfo, memory_batches: int) -> int:
        """Each repair step takes the memory step's pass, the student's, and a third for the teacher."""
        return 2 * self.steps + self.steps // 3 if memory_batches else 0

    def loss(self, ctx: Context, model: Any, batch: Batch, outputs: Any) -> Tensor:
        """Return the plain loss, or during repair the divergence from the model before the task."""
        counts = ctx.target_counts(batch).tolist() if self._repairing else []
        if not any(counts):
            return ctx.target_loss
        answered = ctx.sampled(batch, Sampling(self.top_k, self.temperature), self.most)
        student = ctx.targets(answered, ctx.train_forward(answered))
        teacher = ctx.targets(answered, ctx.forward(answered, at="before task"))
        labels = [count for count in counts if count]
        terms = mean_by_rows(
            [logits for logits, _ in student], [logits for logits, _ in teacher], labels, self.direction
        )
        self._divergences.append(float(terms.detach().sum()) / sum(labels))
        return ctx.mean_over_targets(terms)

    def end_task(self, ctx: Context) -> None:
        """Run the repair steps."""
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
        ends = {"first": found[0], "last": found[-1]} if found else {}
        ctx.event(_REPAIRED.kind, steps=self.steps, **ends)
