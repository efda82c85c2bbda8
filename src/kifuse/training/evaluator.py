"""Scoring a model on the tasks of a stream, with the predictions kept."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kifuse.evaluation.generation import greedy_generate
from kifuse.evaluation.scoring import is_valid_label, score_one
from kifuse.models.loading import Backbone
from kifuse.storage import write_text
from kifuse.tasks.encoding import Encoded, Encoder
from kifuse.tasks.task import Task


@dataclass(frozen=True)
class Cell:
    """One cell of the score matrix.

    Attributes:
        score: 0 to 100.
        valid: Share of outputs that are one of the task's labels, 0 to 100; None without labels.
        n: Test examples.
        seconds: Wall time.
        cut: Inputs that lost their middle to fit.
    """

    score: float
    valid: float | None
    n: int
    seconds: float
    cut: int = 0


class Evaluator:
    """Generates greedily for a task's test set, scores, and writes the predictions.

    Args:
        model: The adapted model.
        backbone: What it was made from.
        encoder: Turns examples into prompts.
        folder: The run's `predictions` folder, or None to keep nothing.
        max_new_tokens: Longest output.
        batch_tokens: Token budget of a batch.
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
    ) -> None:
        self.model = model
        self.backbone = backbone
        self.encoder = encoder
        self.folder = folder
        self.max_new_tokens = max_new_tokens
        self.batch_tokens = batch_tokens

    def score(
        self,
        task: Task,
        after: int,
        progress: Callable[[int, int], None] | None = None,
        *,
        keep: bool = True,
    ) -> Cell:
        """Score one task after `after` tasks have been learned; `keep` writes the predictions."""
        start = time.monotonic()
        encoded = self.encoder.encode_many(task.test)
        predictions = self.answers(task, encoded, progress)
        rows, total, valid = [], 0.0, 0
        for example, prediction in zip(task.test, predictions, strict=True):
            points = score_one(prediction, example.references, task.metric)
            is_valid = is_valid_label(prediction, task.labels) if task.labels else None
            total += points
            valid += bool(is_valid)
            rows.append(
                {
                    "id": example.id,
                    "input": example.input,
                    "references": list(example.references),
                    "prediction": prediction,
                    "score": points,
                    "valid": is_valid,
                }
            )
        if keep and self.folder is not None:
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            write_text(self.folder / f"after-{after}" / f"{task.name}.jsonl", lines)
        n = len(task.test)
        return Cell(
            score=100.0 * total / max(n, 1),
            valid=100.0 * valid / max(n, 1) if task.labels else None,
            n=n,
            seconds=time.monotonic() - start,
            cut=sum(item.cut for item in encoded),
        )

    def answers(
        self, task: Task, encoded: Sequence[Encoded], progress: Callable[[int, int], None] | None = None
    ) -> list[str]:
        """The model's answers to a task's test examples, given as token ids, in their order."""
        with self.backbone.autocast():
            return greedy_generate(
                self.model,
                self.backbone.tokenizer,
                [item.input_ids for item in encoded],
                encoder_decoder=self.backbone.encoder_decoder,
                max_new_tokens=self.limit(task),
                batch_tokens=self.batch_tokens,
                likely=[item.target_ids[:-1] for item in encoded] if task.labels else (),
                progress=progress,
            )

    def limit(self, task: Task) -> int:
        """Tokens to generate at most.

        With labels, two tokens beyond the longest label settle that an output is no label, so the rest of a
        rambling output need not be generated.
        """
        if not task.labels:
            return self.max_new_tokens
        longest = max(len(ids) for ids in self.backbone.tokenizer(list(task.labels))["input_ids"])
        return min(self.max_new_tokens, longest + 2)
