"""SDFT, self-distillation fine-tuning (arXiv 2601.19897): the teacher is the model that sees the answer.

The student answers each prompt x in its own words, y ~ q_theta(. | x). The teacher is the same model with
other weights phi; it reads the prompt together with a demonstration c, which is the example's own answer.
Over the tokens of y, the student is pulled towards the teacher's predictions:

    L = sum_r n_r / N 1/|y_r| sum_t D( q_theta(. | x_r, y_<t) , p_phi(. | x_r, c_r, y_<t) )

where D is a divergence, n_r the number of labels of example r, and N that of the batch. phi is the model
before the task, or follows the student: phi <- alpha theta + (1 - alpha) phi after each step. Labels are not
trained on directly, and no old data is used.

| symbol | setting |
| --- | --- |
| D | `direction` |
| alpha | `follow`; 0 keeps the teacher as it was before the task |
| c | `demonstration`, where `{answer}` stands for the answer |

Accounts of the paper differ about D, so it is a setting. The weight by labels makes the loss independent of
the parts of a step and of the processes, which do not know the lengths of the others' answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, final

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from kifuse.methods.base import SETTINGS, Fraction, Method, Need, Positive
from kifuse.methods.context import Batch, Context, TaskInfo
from kifuse.methods.kept import OfTask, Unsaved
from kifuse.methods.sampled import Direction, Sampling, mean_by_rows
from kifuse.methods.shown import Event, Shown
from kifuse.methods.texts import TextExample, Texts

_SHOWN = Event("demonstrations", ("{shown} answers shown to the teacher", "{cut} question(s) cut for them"))


@final
@dataclass(kw_only=True, config=SETTINGS)
class SDFT(Method):
    """Distils the model before the task, which sees the answer, into the present one on its own answers."""

    direction: Direction = "reverse"
    follow: Fraction = 0.0
    top_k: Annotated[int, Field(ge=1)] = 50
    temperature: Positive = 1.0
    most: Annotated[int, Field(ge=1)] = 128
    demonstration: str = (
        "\n\nThis is an example of a response:\n{answer}\n\nNow answer with a response of your own."
    )

    plain_first_task = False
    shown = Shown(events=(_SHOWN,))
    _followed: OfTask[list[Tensor] | None] = None
    _prompts: Unsaved[dict[str, list[int]]]

    def __post_init__(self) -> None:
        if "{answer}" not in self.demonstration:
            raise ValueError(
                f"demonstration: found {self.demonstration!r}, expected a text with {{answer}} in it, where "
                "the answer is shown."
            )
        self._prompts = {}

    @property
    def needs(self) -> frozenset[Need]:
        """Sampled answers, and the weights before the task, which are the teacher's unless it follows."""
        return frozenset({"answers"}) if self.follow else frozenset({"answers", "before task"})

    def extra_passes(self, task: TaskInfo, memory_batches: int) -> int:
        """The passes of student and teacher over the student's answers; sampling them is not counted."""
        return task.steps + task.steps // 3

    def begin_task(self, ctx: Context) -> None:
        """Copy the weights for a teacher that follows."""
        self._followed = ctx.params.clone() if self.follow else None

    def training_examples(self, ctx: Texts, rows: Sequence[TextExample]) -> Sequence[TextExample]:
        """Prepare the teacher's prompts; the rows stay unchanged."""
        shown = [
            ctx.example(row, more=self.demonstration.replace("{answer}", row.target.strip())) for row in rows
        ]
        pairs = list(zip(ctx.asked(rows), ctx.asked(shown), strict=True))
        self._prompts = {key: ids for (key, _, _), (_, ids, _) in pairs}
        cut = sum(more and not plain for (_, _, plain), (_, _, more) in pairs)
        ctx.event(_SHOWN.kind, shown=len(shown), cut=cut)
        return rows

    def loss(self, ctx: Context, model: Any, batch: Batch, outputs: Any) -> Tensor:
        """Return the divergence from the teacher over the student's own answers; it is the whole loss."""
        counts = ctx.target_counts(batch).tolist()
        if not any(counts):
            return ctx.target_loss
        answered = ctx.sampled(batch, Sampling(self.top_k, self.temperature), self.most)
        student = ctx.targets(answered, ctx.train_forward(answered))
        keys = [key for key, count in zip(ctx.keys(batch), counts, strict=True) if count]
        asked = ctx.asked_otherwise(answered, [self._prompts[key] for key in keys])
        at = "before task" if self._followed is None else self._followed
        teacher = ctx.targets(asked, ctx.forward(asked, at=at))
        terms = mean_by_rows(
            [logits for logits, _ in student],
            [logits for logits, _ in teacher],
            [count for count in counts if count],
            self.direction,
        )
        return ctx.mean_over_targets(terms)

    @torch.no_grad()
    def on_update(self, ctx: Context) -> None:
        """Let the teacher follow: phi <- alpha theta + (1 - alpha) phi."""
        for phi, theta in zip(self._followed or [], ctx.params.tensors, strict=bool(self._followed)):
            phi.lerp_(theta.to(phi.dtype), self.follow)
