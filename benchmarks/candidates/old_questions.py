"""Old questions of new texts: while a task is learned, earlier tasks' instructions are asked about its texts.

Some of the new texts are put to the instruction of each earlier task as well, with one of the earlier task's
labels as the answer. There the model is held to what it said before the task:

    L = 1/N [ sum_(current) CE + lambda sum_p sum_(x, y) KL( p_before(. | c_p, x, y) || p(. | c_p, x, y) ) ]

with c_p the instruction of an earlier task p, x a text of the present task, y one of p's labels, drawn evenly
(for a task without labels: what the model before the task answers), N the target tokens of the batch, and
sums over target positions. No example of an earlier task is kept, only its instruction and its labels.

With `replay` the memory's examples are mixed in too, and hold the model to what it said when their task
ended, as in `der++`. Then L also has

    1/N sum_(memory) [ CE + mu KL(stored || p) ]

| symbol | setting |
| --- | --- |
| lambda | `strength` |
| texts that are put to each earlier task's instruction | `questions` |
| mu | `kept_strength` |
| log-probabilities stored at each target token | `tokens` |

A candidate of docs/measured/winning.md: its rows wait to be run. It is no method of kifuse unless it wins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, final

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional

from kifuse.methods.base import SETTINGS, Method, Need, NotNegative, OldData
from kifuse.methods.context import Batch, Context, TaskInfo
from kifuse.methods.derpp import divergence, likeliest
from kifuse.methods.generated import writable
from kifuse.methods.kept import Kept, Unsaved
from kifuse.methods.lwf import distillation
from kifuse.methods.sampled import Sampling
from kifuse.methods.shown import Event, Shown
from kifuse.methods.texts import TextExample, Texts

ASKED = "old question"
SHOWN = Event("old questions", ("{asked} texts asked the questions of {tasks} earlier task(s)",))


@final
@dataclass(kw_only=True, config=SETTINGS)
class OldQuestions(Method):
    """Distillation from the model before the task on the earlier tasks' questions of the task's own texts."""

    questions: Annotated[int, Field(ge=0)] = 12
    strength: NotNegative = 1.0
    replay: bool = False
    kept_strength: NotNegative = 1.0
    tokens: Annotated[int, Field(ge=1)] = 64

    plain_first_task = False
    shown = Shown(events=(SHOWN,))
    _asks: Kept[dict[str, Any] | None] = None  # by earlier task: its instruction, cue and labels
    _present: Unsaved[dict[str, Any] | None] = None
    _added: Unsaved[int] = 0

    @property
    def old_data(self) -> OldData:
        """None, or the memory's examples mixed into the current task's batches."""
        return "mixed" if self.replay else "none"

    @property
    def needs(self) -> frozenset[Need]:
        """The teacher, and with memory the examples that will be kept."""
        return frozenset({"before task", "kept"} if self.replay else {"before task"})

    def extra_passes(self, task: TaskInfo, memory_batches: int) -> int:
        """The teacher reads each old question once a pass, which is a third of a step's work."""
        share = self._added / (self._added + task.examples) if task.examples else 0.0
        return round(task.steps * share / 3)

    def training_examples(self, ctx: Texts, rows: Sequence[TextExample]) -> list[TextExample]:
        """Add texts of the task with the questions of earlier ones."""
        able = writable(rows)
        self._present = _way(ctx, able[0]) if able else None
        found = []
        # an earlier task with this task's instruction is left out: the labels of both would contradict
        present, earlier = self._present, list((self._asks or {}).values())
        others = [way for way in earlier if present and not _alike(way, present)]
        for way in others if self.questions else ():
            own = {"head": way["head"], "tail": way["tail"], "cue_added": way["cue_added"], "note": ASKED}
            texts = [ctx.example(row, **own) for row in ctx.draw(able, self.questions)]
            if way["labels"]:
                answers = ctx.draw(way["labels"], self.questions)
            else:
                answers = ctx.generate(texts, Sampling())
            found += [
                ctx.example(row, answer=answer, note=ASKED)
                for row, answer in zip(texts, answers, strict=True)
                if answer.strip()
            ]
        self._added = len(found)
        if self._asks:
            ctx.event(SHOWN.kind, asked=len(found), tasks=len(others), alike=len(earlier) - len(others))
        return [*rows, *found]

    def loss(self, ctx: Context, model: Any, batch: Batch, outputs: Any) -> Tensor:
        """Replace the labels of old questions by the teacher's distributions, and add the stored ones."""
        total, notes = ctx.target_loss, ctx.notes(batch)
        asked = [i for i, note in enumerate(notes) if note == ASKED]
        stored = ctx.stored(batch) if self.replay else [None] * len(notes)
        if not asked and not any(stored):
            return total
        said, terms = ctx.targets(batch, outputs), []
        for kept, (logits, _) in zip(stored, said, strict=True):
            if kept:
                terms.append(self.kept_strength * divergence(kept, logits))
        if asked:
            single = batch.split(1)
            for i in asked:
                ((old, _),) = ctx.targets(single[i], ctx.forward(single[i], at="before task"))
                logits, gold = said[i]
                terms.append(self.strength * distillation(old, logits, 1.0))
                terms.append(-functional.cross_entropy(logits, gold, reduction="none"))
        return total + ctx.mean_over_targets(torch.cat(terms))

    @torch.no_grad()
    def end_task(self, ctx: Context) -> None:
        """Note how the task asks, and store what the model says to the examples that are kept."""
        if self._present is not None:
            self._asks = {**(self._asks or {}), ctx.task.name: self._present}
        for example in ctx.kept_examples() if self.replay else ():
            ((logits, _),) = ctx.targets(example, ctx.forward(example))
            ctx.store(example, likeliest(logits, self.tokens))


def _way(ctx: Texts, row: TextExample) -> dict[str, Any]:
    """How a task asks, and its labels."""
    labels = list(ctx.labels or ())
    return {"head": row.head, "tail": row.tail, "cue_added": row.cue_added, "labels": labels}


def _alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two tasks ask in the same words."""
    return (one["head"], one["tail"]) == (other["head"], other["tail"])
