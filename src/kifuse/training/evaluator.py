"""Scoring a model on the tasks of a stream, with the predictions kept."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kifuse.evaluation.generation import greedy_generate
from kifuse.models.loading import Backbone
from kifuse.scoring.scores import score_all
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
        scored = score_all(
            predictions,
            task.test,
            task.metric,
            task.labels,
            seen=[[self._seen(text) for text in example.references] for example in task.test],
            seen_labels=[self._seen(label) for label in task.labels or ()],
        )
        if keep and self.folder is not None:
            lines = "".join(
                json.dumps(
                    {
                        "id": example.id,
                        "input": example.input,
                        "references": list(example.references),
                        "prediction": prediction,
                        "score": scored.points[place],
                        "valid": scored.valid[place] if scored.valid is not None else None,
                    },
                    ensure_ascii=False,
                )
                + "\n"
                for place, (example, prediction) in enumerate(zip(task.test, predictions, strict=True))
            )
            write_text(self.folder / f"after-{after}" / f"{task.name}.jsonl", lines)
        n = len(task.test)
        return Cell(
            score=scored.score,
            valid=100.0 * sum(scored.valid) / max(n, 1) if scored.valid is not None else None,
            n=n,
            seconds=time.monotonic() - start,
            cut=sum(item.cut for item in encoded),
        )

    def _seen(self, text: str) -> str:
        """A text as the model can give it back: special tokens in it decode to nothing.

        The text itself where nothing of it would be left, or where the tokenizer has no token for some of it.
        """
        tokenizer = self.backbone.tokenizer
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        unknown = tokenizer.unk_token_id
        if unknown is not None and unknown in ids and tokenizer.unk_token not in text:
            return text
        return tokenizer.decode(ids, skip_special_tokens=True).strip() or text

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
