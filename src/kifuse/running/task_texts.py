"""A task's examples as texts: methods may change what is trained on, and what the memory keeps."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from kifuse.answering.evaluator import Evaluator
from kifuse.answering.sampling import sample
from kifuse.driving.method_loss import key_of
from kifuse.errors import RunError
from kifuse.methods.base import Method, TaskInfo
from kifuse.methods.sampled import Sampling
from kifuse.methods.shown import Shown
from kifuse.methods.texts import Noted
from kifuse.processes import Processes
from kifuse.running.progress import Progress
from kifuse.running.trainer_listener import Watcher
from kifuse.tasks.memory import MemoryBuffer
from kifuse.tasks.task import Conversation, Example, Task


class TaskTexts:
    """Implements `kifuse.methods.texts.Texts`.

    Args:
        task: The task.
        index: Its 0-based position.
        evaluator: Generates with the model as it is.
        seed: The run's seed.
        progress: The listener, which is told of each entry.
    """

    def __init__(self, task: Task, index: int, evaluator: Evaluator, seed: int, progress: Progress) -> None:
        self.task = TaskInfo(index, task.name, 0, examples=len(task.train))
        self.labels = task.labels
        self.events: list[dict[str, Any]] = []
        self._task, self._evaluator, self._progress = task, evaluator, progress
        self._shown, self._memory, self._batch_size = Shown(), MemoryBuffer(), 1
        # a text as seed gives the same numbers on every machine
        self._random = random.Random(f"{seed}:{task.name}")  # noqa: S311

    @classmethod
    def of(cls, engine: Any, k: int, task: Task) -> TaskTexts:
        """Make the texts of an engine's k-th task (1-based)."""
        found = cls(task, k - 1, engine.evaluator, engine.config.training.seed, engine.progress)
        found._memory, found._batch_size = engine.memory, engine.config.training.batch_size
        return found

    @property
    def inputs(self) -> list[str]:
        """See `Texts.inputs`."""
        task = self._task
        return [row.body for split in (task.train, task.dev, task.test) for row in split]

    def draw(self, rows: Sequence[Any], count: int) -> list[Any]:
        """See `Texts.draw`."""
        found: list[Any] = []
        while rows and len(found) < count:
            found += self._random.sample(list(rows), min(len(rows), count - len(found)))
        return found

    def example(self, row: Any, **changes: Any) -> Example:
        """See `Texts.example`."""
        if more := changes.pop("more", ""):
            return _asking_more(row, more)
        answer = changes.pop("answer", None)
        references = row.references if answer is None else (answer,)
        return replace(row, **changes, references=references, id=None, conversation=None)

    def asked(self, rows: Sequence[Any]) -> list[tuple[str, list[int], bool]]:
        """See `Texts.asked`."""
        encoder, two_sided = self._evaluator.encoder, self._evaluator.backbone.encoder_decoder
        return [
            (key_of(each, encoder_decoder=two_sided), list(each.input_ids), each.cut)
            for each in encoder.encode_many(rows)
        ]

    def generate(
        self, prompts: Sequence[Any], sampling: Sampling, *, at: Literal["now", "base"] = "now"
    ) -> list[str]:
        """See `Texts.generate`.

        Raises:
            RunError: The model has no adapter to leave out.
        """
        evaluator, seed = self._evaluator, self._random.getrandbits(32)
        encoder, backbone = evaluator.encoder, evaluator.backbone
        if at == "base" and not hasattr(evaluator.model, "disable_adapter"):
            raise RunError(
                "the base model is not available: there is no adapter, and its own weights are trained."
            )
        without = evaluator.model.disable_adapter() if at == "base" else contextlib.nullcontext()
        with backbone.autocast(), without:
            found = sample(
                evaluator.model,
                backbone.tokenizer,
                [encoder.prompt(each) for each in prompts],
                encoder_decoder=backbone.encoder_decoder,
                max_new_tokens=encoder.max_target,
                top_k=sampling.top_k,
                temperature=sampling.temperature,
                seed=seed,
                batch_tokens=evaluator.batch_tokens,
                ends=encoder.stops,
            )
        return _of_the_first([encoder.answered(text) for text in found])

    def answer(self, prompts: Sequence[Any]) -> list[str]:
        """See `Texts.answer`."""
        evaluator = self._evaluator
        ids = [evaluator.encoder.prompt(each) for each in prompts]
        found = [text.strip() for text in evaluator.generate(ids, evaluator.limit(self._task))]
        if self.labels is not None:
            as_read = {evaluator.encoder.seen(label).strip(): label for label in self.labels}
            found = [as_read.get(text, "") for text in found]
        return _of_the_first(found)

    def event(self, kind: str, **values: Any) -> None:
        """See `Texts.event`."""
        self.events.append({"kind": kind, "step": 0, **values})
        Watcher(self._progress, self.task.name, self._shown).heard(self.events[-1])

    def trained_on(self, methods: Sequence[Method], rows: Sequence[Example]) -> Sequence[Example]:
        """The examples that a task is trained on, after the methods have changed them."""
        found: Any = rows
        for method in methods:
            self._shown = method.shown
            method.recall()
            if type(method).training_examples is not Method.training_examples:
                if found is rows:
                    # in memory, since a row that a method leaves as it is must stay the same object
                    found = rows = list(rows)
                found = list(method.training_examples(self, found))
        known = set() if found is rows else set(map(id, rows))
        new = [] if found is rows else [row for row in found if id(row) not in known]
        gone = len(rows) + len(new) - len(found)
        if new or gone:
            cut = sum(each.target_cut for each in self._evaluator.encoder.encode_many(new))
            self.event("examples", given=len(rows), added=len(new), dropped=gone, cut_answers=cut)
        methods[0].noted = self._noted(found)
        return found

    def _noted(self, rows: Sequence[Example]) -> Noted:
        """Collect the notes of the rows that are trained on, and of those in the memory."""
        encoder, names = self._evaluator.encoder, dict[str, str]()
        encoder_decoder = self._evaluator.backbone.encoder_decoder
        noted = [row for row in rows if row.note]
        groups = {note: [row for row in noted if row.note == note] for note in {row.note for row in noted}}
        for name, examples in {**{t: self._memory.examples(t) for t in self._memory.tasks}, **groups}.items():
            for each in encoder.encode_pieces(examples):
                names[key_of(each, encoder_decoder=encoder_decoder)] = name
        counts = Counter[str]()
        if noted:
            for row, each in zip(rows, encoder.encode_many(rows), strict=True):
                counts[row.note] += len(each.target_ids)
        share = self._batch_size / max(1, len(rows))
        return Noted(names, {note: share * count for note, count in counts.items()})

    def remembered(self, methods: Sequence[Method], count: int) -> list[Example] | None:
        """The examples that the memory is to keep of a task in place of real ones; None for real ones."""
        for method in methods:
            self._shown = method.shown
            found = method.remember(self, self._task.train, count)  # type: ignore[arg-type]
            if found is not None:
                return list(found)[:count]  # type: ignore[arg-type]
        return None


def _of_the_first(texts: list[str]) -> list[str]:
    """Give all processes the texts of the first one: another's model may differ in the last bits."""
    return Processes.of_launcher().of_first(lambda: texts)


def _asking_more(row: Example, more: str) -> Example:
    """An example with a text added to what is asked."""
    asked = replace(row, body=row.body + more, id=None)
    if row.conversation is None:
        return asked
    messages = [dict(message) for message in row.conversation.messages]
    last = max((i for i, message in enumerate(messages[:-1]) if message["role"] == "user"), default=None)
    if last is None:
        return replace(asked, conversation=None)
    content = messages[last]["content"]
    if isinstance(content, str):
        messages[last]["content"] = content + more
    else:
        messages[last]["content"] = [*content, {"type": "text", "text": more}]
    return replace(asked, conversation=Conversation.of(messages, row.conversation.tools))
