"""Generated replay: the model itself writes the examples that are replayed later (LAMOL, LFPT5, SAPT).

While a task is learned, some of its examples are also used as writing lessons: the prompt names the task and
its instruction, and the answer is the example's own input. When the task ends, the model is given such
prompts, samples inputs, and answers each of them greedily, as it would answer a test example. The examples
that pass the filters go into the memory instead of real ones; later tasks mix them in, as `replay` does.

    memory of k = { (x, y) : x sampled from p(. | writing prompt of k), y = argmax p(. | x) }

These are dropped: empty inputs; inputs that a training, dev or test example of the task has; inputs that were
already written; answers that are empty or not one of the task's labels. If the task has labels, each gets an
equal number of places in the memory; places that one label leaves empty are filled with examples of the
others. The record says how many examples were requested, kept and dropped.

From SAPT this method takes the filters, and that examples are written once, when their task ends; SAPT's
generator is a separate model. From LAMOL it takes that one model learns both the task and to write its
examples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, final

from pydantic import Field
from pydantic.dataclasses import dataclass

from kifuse.methods.base import SETTINGS, DataClass, Fraction, Method, OldData, Positive
from kifuse.methods.kept import Unsaved
from kifuse.methods.sampled import Sampling
from kifuse.methods.shown import Event, Shown
from kifuse.methods.texts import TextExample, Texts

WRITTEN = Event(
    "written examples",
    ("{kept} of {wanted} examples written by the model", "{copies} copies", "{no_label} without a label"),
)


@final
@dataclass(kw_only=True, config=SETTINGS)
class GeneratedReplay(Method):
    """Replay of examples that the model wrote itself."""

    lessons: Fraction = 0.25
    attempts: Annotated[int, Field(ge=1)] = 4
    top_k: Annotated[int, Field(ge=1)] = 20
    temperature: Positive = 1.0

    plain_first_task = False
    shown = Shown(events=(WRITTEN,))

    @property
    def old_data(self) -> OldData:
        """Examples that the model wrote are mixed into the current task's batches."""
        return "mixed"

    @property
    def data_class(self) -> DataClass:
        """Generated replay: no real example of an earlier task is kept."""
        return "generated replay"

    @property
    def more_examples(self) -> float:
        """The writing lessons, as a share of the task's examples."""
        return self.lessons

    def training_examples(self, ctx: Texts, rows: Sequence[TextExample]) -> list[TextExample]:
        """Add the writing lessons."""
        able = writable(rows)
        chosen = ctx.draw(able, round(self.lessons * len(able)))
        return [*rows, *(lesson(ctx, row, row.body.strip()) for row in chosen)]

    def remember(self, ctx: Texts, rows: Sequence[TextExample], count: int) -> list[TextExample]:
        """Let the model write examples of the task."""
        able, chosen = writable(rows), Chosen(ctx, count)
        for _ in range(self.attempts if able else 0):
            if chosen.enough:
                break
            starts = ctx.draw(able, count)
            sampling = Sampling(self.top_k, self.temperature)
            texts = ctx.generate([lesson(ctx, row, "") for row in starts], sampling)
            made = [ctx.example(row, body=text.strip()) for row, text in zip(starts, texts, strict=True)]
            for row, answer in zip(made, ctx.answer(made), strict=True):
                chosen.offer(row, answer)
        ctx.event(WRITTEN.kind, **chosen.counted())
        return chosen.found


class Chosen:
    """Decides which of the examples that represent a task are kept.

    Args:
        ctx: The context of the task, for hooks that see texts.
        count: Most examples to keep.
    """

    def __init__(self, ctx: Texts, count: int) -> None:
        self._ctx, self._count = ctx, count
        self._per_label = -(-count // len(ctx.labels)) if ctx.labels else count
        self._kept: list[TextExample] = []
        self._spare: list[TextExample] = []
        self._known, self._seen = {normal(text) for text in ctx.inputs}, set[str]()
        self._of_label, self._counts = Counter[str](), Counter[str]()

    @property
    def enough(self) -> bool:
        """Whether the places of all labels are filled."""
        return len(self._kept) >= self._count

    @property
    def found(self) -> list[TextExample]:
        """The examples that are kept."""
        return [*self._kept, *self._spare][: self._count]

    def offer(self, row: TextExample, answer: str) -> None:
        """Keep an example with its answer, or count the reason for dropping it."""
        self._counts["asked"] += 1
        key = normal(row.body)
        if fault := _fault(key, answer, self._known, self._seen):
            self._counts[fault] += 1
            return
        self._seen.add(key)
        self._of_label[answer] += 1
        surplus = self._of_label[answer] > self._per_label and self._ctx.labels
        (self._spare if surplus else self._kept).append(self._ctx.example(row, answer=answer))

    def counted(self) -> dict[str, Any]:
        """Return how many examples were offered, kept and dropped, for the record."""
        found, labels, asked = self.found, self._ctx.labels, self._counts["asked"]
        return {
            "wanted": self._count,
            "kept": len(found),
            "surplus": len(self._kept) + len(self._spare) - len(found),
            "labels": len({row.target for row in found}) if labels else None,
            "labels_in_all": len(labels) if labels else None,
            "distinct_share": round(len(self._seen) / asked, 4) if asked else None,
            **{name: self._counts[name] for name in ("asked", "empty", "copies", "repeated", "no_label")},
        }


class BroughtSamples(Method):
    """Keeps samples that the user brings instead of a task's real examples; see `memory.samples`.

    Args:
        samples: By the name of a task: pairs of input and output.
        where: The file that they were read from, for the record.
        sha256: The file's SHA-256.
    """

    shown = Shown(
        events=(
            Event(
                "brought samples",
                ("{kept} of {asked} samples from {file}", "{copies} copies", "{no_label} without a label"),
            ),
        )
    )

    _samples: Unsaved[Mapping[str, Sequence[tuple[str, str]]]]
    _of_file: Unsaved[dict[str, str]]

    def __init__(self, samples: Mapping[str, Sequence[tuple[str, str]]], where: str, sha256: str) -> None:
        self._samples, self._of_file = samples, {"file": where, "sha256": sha256}

    @property
    def data_class(self) -> DataClass:
        """Generated replay: no real example of an earlier task is kept."""
        return "generated replay"

    def remember(self, ctx: Texts, rows: Sequence[TextExample], count: int) -> list[TextExample]:
        """Choose among the task's samples, with the same prompt format as its own examples."""
        chosen, able = Chosen(ctx, count), writable(rows)
        for text, answer in self._samples.get(ctx.task.name, ()) if able else ():
            known = answer if ctx.labels is None or answer in ctx.labels else ""
            chosen.offer(ctx.example(able[0], body=text), known)
        ctx.event("brought samples", **self._of_file, **chosen.counted())
        return chosen.found


def writable(rows: Sequence[Any]) -> list[Any]:
    """The examples that are no chat and whose input has text besides instruction and cue."""
    return [row for row in rows if row.body.strip() and row.conversation is None]


def lesson(ctx: Texts, row: TextExample, text: str) -> TextExample:
    """Make the prompt that asks for an input of the task, with that input as the answer."""
    head = f"Write an input of the task '{ctx.task.name}'.\n{row.head}".strip()
    return ctx.example(row, head=head, body="", tail="\nInput:", answer=text)


def normal(text: str) -> str:
    """A text in the form used for comparison: letter case and white space do not count."""
    return " ".join(text.split()).casefold()


def _fault(key: str, answer: str, known: set[str], seen: set[str]) -> str:
    if not key:
        return "empty"
    if key in known:
        return "copies"
    if key in seen:
        return "repeated"
    return "" if answer else "no_label"
