"""Scoring a model on the tasks of a stream, with the predictions kept."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from kifuse.adapters.base import adapter_on
from kifuse.answering.generation import greedy_generate
from kifuse.answering.perplexity import METRIC, losses, perplexity
from kifuse.io.storage import sha256_text, write_text
from kifuse.models.loading import Backbone
from kifuse.models.pieces import in_pieces, ready_to_answer
from kifuse.processes import ALONE, Processes
from kifuse.record.run_record import RunRecord, ScoreRecord
from kifuse.scoring.scores import score_all
from kifuse.tasks.encoding import Encoded, Encoder
from kifuse.tasks.task import Example, Task


@dataclass(frozen=True)
class Cell:
    """One cell of the score matrix.

    Attributes:
        score: The score, 0 to 100.
        valid: Share of outputs that are one of the task's labels, 0 to 100; None without labels.
        n: Number of test examples.
        seconds: Wall time.
        cut: Number of inputs that lost their middle to fit.
        predictions: SHA-256 of the file with the answers; None if none was written.
        identified: Share of inputs for which the method found the right task, 0 to 100; None if the method
            does not look for the task, or the task was not learned yet.
        stderr: Standard error of the score, in points; None if it is not known.
        measured: Further measured values, by name.
    """

    score: float
    valid: float | None
    n: int
    seconds: float
    cut: int = 0
    predictions: str | None = None
    identified: float | None = None
    stderr: float | None = None
    measured: dict[str, float] = field(default_factory=dict)

    def on_record(self, after: int, task: int) -> ScoreRecord:
        """The record's entry for this cell, of the task at a 0-based position after so many were learned."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "cut"}
        return ScoreRecord(after=after, task=task, **values)


class Evaluator:
    """Generates greedily for a task's test set, scores, and writes the predictions.

    Args:
        model: The adapted model.
        backbone: The backbone that the model was made from.
        encoder: Turns examples into prompts.
        folder: The run's `predictions` folder, or None to keep nothing.
        max_new_tokens: The most tokens of an output.
        batch_tokens: Token budget of a batch.
        place: The 0-based position of a task by its name.
        tells: Whether the adapter is told which task the test examples are of.
        processes: The processes that score together, each a share of the prompts; the first one writes.
    """

    def __init__(
        self,
        model: Any,
        backbone: Backbone,
        encoder: Encoder,
        *,
        folder: Path | None,
        max_new_tokens: int,
        batch_tokens: int,
        place: Callable[[str], int | None] = lambda name: None,
        tells: bool = False,
        processes: Processes = ALONE,
    ) -> None:
        self.model = model
        self.backbone = backbone
        self.encoder = encoder
        self.folder = folder
        self.max_new_tokens = max_new_tokens
        self.batch_tokens = batch_tokens
        self._place, self._tells, self.processes = place, tells, processes

    @contextlib.contextmanager
    def told(self, task: str | None) -> Iterator[None]:
        """Tell the adapter which task the inputs are of, where the method's class is "task id given"."""
        adapter = adapter_on(self.model)
        if adapter is None or task is None or not self._tells:
            yield
            return
        adapter.told = self._place(task)
        try:
            yield
        finally:
            adapter.told = None

    def score(
        self,
        task: Task,
        after: int,
        progress: Callable[[int, int], None] | None = None,
        *,
        keep: bool = True,
    ) -> Cell:
        """Score one task after `after` tasks have been learned; `keep` writes the predictions."""
        adapter = adapter_on(self.model)
        taken = Counter[int]() if adapter is None or adapter.taken is None else adapter.taken
        taken.clear()
        with self.told(task.name):
            score = self._continue if task.metric == METRIC else self._answered
            cell = score(task, after, progress, keep=keep)
        place, taken = self._place(task.name), sum(self.processes.gathered(taken), Counter())
        total = taken.total()
        if not total or place is None or place >= after:
            return cell
        return replace(cell, identified=100.0 * taken[place] / total)

    def _answered(
        self, task: Task, after: int, progress: Callable[[int, int], None] | None, *, keep: bool
    ) -> Cell:
        """Score a task by the model's answers."""
        start = time.monotonic()
        encoded = self.encoder.encode_many(task.test)
        predictions = self.answers(task, encoded, progress)
        return self.processes.of_first(
            lambda: self._marked(task, after, predictions, sum(item.cut for item in encoded), start, keep)
        )

    def _marked(
        self, task: Task, after: int, predictions: Sequence[str], cut: int, start: float, keep: bool
    ) -> Cell:
        """Score the answers, and write them to the predictions."""
        scored = score_all(
            predictions,
            task.test,
            task.metric,
            task.labels,
            seen=[self.encoder.references(example) for example in task.test],
            seen_labels=[self.encoder.seen(label) for label in task.labels or ()],
        )
        rows = [
            {
                "id": example.id,
                "input": example.input,
                "references": list(self.encoder.written(example)),
                "prediction": prediction,
                "score": scored.points[place],
                "valid": scored.valid[place] if scored.valid is not None else None,
            }
            for place, (example, prediction) in enumerate(zip(task.test, predictions, strict=True))
        ]
        written = self.write(after, task.name, rows) if keep else None
        n = len(task.test)
        return Cell(
            score=scored.score,
            valid=100.0 * sum(scored.valid) / max(n, 1) if scored.valid is not None else None,
            n=n,
            seconds=time.monotonic() - start,
            cut=cut,
            predictions=written,
        )

    def _continue(
        self, task: Task, after: int, progress: Callable[[int, int], None] | None, *, keep: bool
    ) -> Cell:
        """Score texts by how well the model continues them: 100 divided by the perplexity over all."""
        start = time.monotonic()
        pieces = [self.encoder.encode_pieces([example]) for example in task.test]
        flat = [piece for parts in pieces for piece in parts]
        found = iter(self.losses(flat, progress))
        by_example = [[next(found) for _ in parts] for parts in pieces]
        rows = [_continued(*each) for each in zip(task.test, by_example, strict=True)]
        written = self.processes.of_first(lambda: self.write(after, task.name, rows) if keep else None)
        return Cell(
            score=100.0 / perplexity([part for parts in by_example for part in parts]),
            valid=None,
            n=len(task.test),
            seconds=time.monotonic() - start,
            cut=sum(piece.cut for piece in flat),
            predictions=written,
        )

    def losses(
        self, encoded: Sequence[Encoded], progress: Callable[[int, int], None] | None = None
    ) -> list[tuple[float, int]]:
        """The loss and the number of tokens of each target, by all processes; see `losses`."""
        with ready_to_answer(self.model):
            return losses(
                self.model,
                self.backbone,
                encoded,
                batch_tokens=self.batch_tokens,
                progress=progress,
                processes=self._sharing(self.processes),
            )

    def write(self, after: int, task: str, rows: Sequence[dict[str, Any]]) -> str | None:
        """Write the predictions of a task; returns their SHA-256, or None if nothing is written."""
        if self.folder is None:
            return None
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_text(self.folder / f"after-{after}" / f"{task}.jsonl", lines)
        return sha256_text(lines)

    def answers(
        self, task: Task, encoded: Sequence[Encoded], progress: Callable[[int, int], None] | None = None
    ) -> list[str]:
        """The model's answers to a task's test examples, given as token ids, in their order."""
        likely = [self.encoder.without_end(item.target_ids) for item in encoded] if task.labels else []
        return self.generate(
            [item.input_ids for item in encoded],
            self.limit(task),
            likely=likely,
            progress=progress,
            processes=self.processes,
        )

    def generate(
        self,
        prompts: Sequence[list[int]],
        max_new_tokens: int,
        *,
        likely: Sequence[Sequence[int]] = (),
        progress: Callable[[int, int], None] | None = None,
        processes: Processes = ALONE,
    ) -> list[str]:
        """Answer prompts greedily, without what a chat template adds to answers; see `greedy_generate`."""
        with self.backbone.autocast(), ready_to_answer(self.model):
            found = greedy_generate(
                self.model,
                self.backbone.tokenizer,
                prompts,
                encoder_decoder=self.backbone.encoder_decoder,
                max_new_tokens=max_new_tokens,
                batch_tokens=self.batch_tokens,
                likely=likely,
                ends=self.encoder.stops,
                progress=progress,
                processes=self._sharing(processes),
            )
        return [self.encoder.answered(text) for text in found]

    @property
    def in_pieces(self) -> bool:
        """Whether the model lies in pieces, so that all processes must call it together."""
        return any(map(in_pieces, self.model.parameters()))

    def _sharing(self, processes: Processes) -> Processes:
        """The processes that share the prompts out; all answer all of them with a model in pieces."""
        return ALONE if self.in_pieces else processes

    def limit(self, task: Task) -> int:
        """The most tokens to generate for a task.

        With labels, an output that is two tokens longer than the longest label is no label, so the rest of it
        need not be generated.
        """
        if not task.labels:
            return self.max_new_tokens
        longest = max(len(ids) for ids in self.backbone.tokenizer(list(task.labels))["input_ids"])
        return min(self.max_new_tokens, longest + 2 + self.encoder.frame)


def place_of(record: RunRecord, name: str) -> int | None:
    """The 0-based position of a task; None if the record has no such task."""
    return next((i for i, task in enumerate(record.tasks) if task.name == name), None)


def _continued(example: Example, parts: Sequence[tuple[float, int]]) -> dict[str, Any]:
    """Make the row of a text that was scored by its perplexity; there is no answer to show."""
    found = perplexity(parts)
    shown = {"id": example.id, "input": example.input, "references": list(example.references)}
    return {**shown, "prediction": "", "score": 1.0 / found, "valid": None, "perplexity": found}
