"""LFPT5 (arXiv 2110.07298): one prompt learns all tasks and writes replay samples; distillation preserves it.

    reads [E(x); P],      P alone trains, L vectors for all tasks
    L = (1 - mu) (L_task + lambda_lm L_lm) + mu L_kd
    L_task  mean cross-entropy of y given x, on the task's examples and on pseudo samples of earlier tasks
    L_lm    mean cross-entropy of "x, separator, y" given a prompt that names the task, on the same examples
    L_kd    sum over the target tokens of a step's pseudo samples of KL(p_before || p), p_before the model
            before the task

Before a task, the model writes pseudo samples of each earlier task. A sample is kept if it contains the
separator exactly once, followed by one of the task's labels.

| symbol | setting |
| --- | --- |
| L | `length` |
| lambda_lm | `lessons` |
| mu | `distillation` |
| pseudo samples of each class, or of a task without labels | `per_class`, `per_task` |
| how often as many are asked for as are wanted | `attempts` |
| tokens that each written one is drawn from, and what logits are divided by | `top_k`, `temperature` |

In kifuse a step mixes all kinds of examples. So L_task and L_lm are sums, divided by the average number of
their target tokens in a step. Then accumulation changes nothing, and each term counts as if it had its own
batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from hashlib import sha256
from typing import Annotated, Any, final

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional

from kifuse.adapters.prompts import TaskPrompts
from kifuse.methods.base import SETTINGS, DataClass, Fraction, Method, Need, NotNegative, Positive
from kifuse.methods.context import Batch, Context
from kifuse.methods.generated import normal, writable
from kifuse.methods.kept import Kept, Unsaved
from kifuse.methods.sampled import Sampling
from kifuse.methods.shown import Event, Shown
from kifuse.methods.texts import TextExample, Texts

SEPARATOR = "__ans__"
LESSON, PSEUDO = "lesson", "pseudo"
WRITTEN = Event(
    "pseudo samples",
    ("{kept} of {wanted} pseudo samples of {of}", "{malformed} malformed", "{no_label} without a label"),
)
SHOWN = 3
"""Number of a task's pseudo samples that the record shows."""


class PromptBehind(TaskPrompts):
    """One prompt for all tasks, placed after the input."""

    behind = True

    def begin_task(self, index: int, seed: int) -> None:
        """Do nothing: all tasks train the same prompt."""

    def vectors(self, ids: Tensor, embedded: Tensor, asked: Tensor) -> Tensor:
        """Return P for every row."""
        return self.model.soft_prompts.prompt.expand(len(ids), -1, -1)


@final
@dataclass(kw_only=True, config=SETTINGS)
class LFPT5(Method):
    """One prompt, pseudo samples of earlier tasks, and distillation on these samples."""

    length: Annotated[int, Field(ge=1)] = 300
    lessons: NotNegative = 0.25
    distillation: Fraction = 0.01
    per_class: Annotated[int, Field(ge=1)] = 2
    per_task: Annotated[int, Field(ge=1)] = 4
    attempts: Annotated[int, Field(ge=1)] = 4
    top_k: Annotated[int, Field(ge=1)] = 64
    temperature: Positive = 1.0

    adapter = PromptBehind
    plain_first_task = False
    reminders = frozenset({PSEUDO})
    shown = Shown(events=(WRITTEN,))
    _asks: Kept[dict[str, Any] | None] = None  # by earlier task: prompt format, labels, hashes of inputs
    _present: Unsaved[dict[str, Any] | None] = None

    @property
    def data_class(self) -> DataClass:
        """Generated replay: no example of an earlier task is kept."""
        return "generated replay"

    @property
    def needs(self) -> frozenset[Need]:
        """The weights before the task, which are the teacher's."""
        return frozenset({"before task"})

    @property
    def more_examples(self) -> float:
        """One lesson for each example."""
        return 1.0

    def training_examples(self, ctx: Texts, rows: Sequence[TextExample]) -> list[TextExample]:
        """Add pseudo samples of earlier tasks, and a writing lesson for each example."""
        able = writable(rows)
        self._present = _way(ctx, able[0]) if able else None
        found, lessons = list(rows), [_lesson(ctx, ctx.task.name, row) for row in able]
        for name, way in (self._asks or {}).items():
            written = self._written(ctx, name, way, rows[0])
            found += written
            lessons += [_lesson(ctx, name, row) for row in written]
        return [*found, *lessons] if self.lessons else found

    def _written(self, ctx: Texts, name: str, way: dict[str, Any], like: TextExample) -> list[TextExample]:
        """Let the model write pseudo samples of an earlier task."""
        labels, counts = way["labels"], Counter[str]()
        room = Counter(dict.fromkeys(labels, self.per_class) if labels else {"": self.per_task})
        wanted, seen = room.total(), set(way["inputs"])
        own = {"head": way["head"], "tail": way["tail"], "cue_added": way["cue_added"]}
        empty = ctx.example(like, **own, body="", answer="")
        prompt = _lesson(ctx, name, empty, written="")
        kept: list[TextExample] = []
        for _ in range(self.attempts):
            if len(kept) == wanted:
                break
            for text in ctx.generate([prompt] * wanted, Sampling(self.top_k, self.temperature)):
                counts["asked"] += 1
                body, _, answer = (part.strip() for part in text.partition(SEPARATOR))
                key, place = _hash(body), answer if labels else ""
                if text.count(SEPARATOR) != 1 or not (body and answer):
                    counts["malformed"] += 1
                elif labels and answer not in labels:
                    counts["no_label"] += 1
                elif key in seen:
                    counts["copies" if key in way["inputs"] else "repeated"] += 1
                elif not room[place]:
                    counts["surplus"] += 1
                else:
                    room[place] -= 1
                    seen.add(key)
                    kept.append(ctx.example(empty, body=body, answer=answer, note=PSEUDO))
        covered = len({row.target for row in kept}) if labels else None
        names = ("asked", "malformed", "no_label", "copies", "repeated", "surplus")
        ctx.event(
            WRITTEN.kind,
            of=name,
            wanted=wanted,
            kept=len(kept),
            labels=covered,
            labels_in_all=len(labels) if labels else None,
            examples=[{"input": row.body, "output": row.target} for row in kept[:SHOWN]],
            **{each: counts[each] for each in names},
        )
        return kept

    def loss(self, ctx: Context, model: Any, batch: Batch, outputs: Any) -> Tensor:
        """Compute (1 - mu) (L_task + lambda_lm L_lm) + mu L_kd."""
        notes, said = ctx.notes(batch), ctx.targets(batch, outputs)
        counts = ctx.step_targets
        step, lessons = sum(counts.values()), counts.get(LESSON, 0.0)
        # turn a mean over all target tokens of the step into one over those of the examples or of the lessons
        weights = {LESSON: self.lessons * step / lessons if lessons else 0.0}
        other = step / (step - lessons) if step > lessons else 1.0
        each = [
            weights.get(note, other) * functional.cross_entropy(logits, gold, reduction="none")
            for note, (logits, gold) in zip(notes, said, strict=True)
        ]
        total = (1 - self.distillation) * ctx.mean_over_targets(torch.cat(each))
        if self.distillation and PSEUDO in notes:
            before = ctx.targets(batch, ctx.forward(batch, at="before task"))
            apart = [
                _divergence(old[0], new[0])
                for note, old, new in zip(notes, before, said, strict=True)
                if note == PSEUDO
            ]
            # times the average number of target tokens in a step: turns the mean into a sum over the step
            total = total + self.distillation * step * ctx.mean_over_targets(torch.cat(apart))
        return total

    def end_task(self, ctx: Context) -> None:
        """Keep the task's prompt format, labels and input hashes."""
        if self._present is not None:
            self._asks = {**(self._asks or {}), ctx.task.name: self._present}


def _divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(p_before || p) at each target token, `(targets,)`, from logits `(targets, vocabulary)`."""
    old, new = teacher.log_softmax(dim=-1), student.log_softmax(dim=-1)
    return (old.exp() * (old - new)).sum(dim=-1)


def _way(ctx: Texts, row: TextExample) -> dict[str, Any]:
    """The prompt format of a task, its labels, and hashes of its inputs; no text of an example."""
    return {
        "head": row.head,
        "tail": row.tail,
        "cue_added": row.cue_added,
        "labels": list(ctx.labels or ()),
        "inputs": sorted({_hash(text) for text in ctx.inputs}),
    }


def _hash(text: str) -> str:
    return sha256(normal(text).encode()).hexdigest()[:8]


def _lesson(ctx: Texts, name: str, row: TextExample, written: str | None = None) -> TextExample:
    """Make the prompt that asks for an example of a task by its name alone, and the example as answer."""
    head = f"Write an example of the task '{name}'."
    answer = f"{row.body.strip()} {SEPARATOR} {row.target}" if written is None else written
    return ctx.example(
        row, head=head, body="", tail="\nExample:", answer=answer, cue_added=False, note=LESSON
    )
