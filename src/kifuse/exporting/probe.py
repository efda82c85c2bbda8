"""The probe of a merged model: it must answer questions just as the adapter on its base does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from kifuse.errors import RunError
from kifuse.exporting.source import Source
from kifuse.io.whole_folders import check_file
from kifuse.record.run_record import FILE
from kifuse.tasks.chat_template import ChatTemplate
from kifuse.tasks.rendering import PLAIN

EACH, MOST = 4, 32
"""The most questions of one task, and of all tasks together."""

LENGTH = 32
"""Most tokens of an answer."""

GENERAL = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "A customer asks: where is my parcel? Answer politely.",
    "2 + 3 =",
)
"""Questions to ask if the folder holds no question of a task."""


def questions(source: Source) -> tuple[list[str], bool]:
    """Take questions from the learned tasks' test examples, out of the predictions beside the record.

    Returns:
        The texts, and whether they are of the tasks; else they are general ones.

    Raises:
        RunError: A file of predictions is not as it was written.
    """
    found: list[str] = []
    record = source.record
    seals = {(cell.after, record.tasks[cell.task].name): cell.predictions for cell in record.scores}
    for name in source.tasks:
        for after in range(source.count, -1, -1):
            file = source.folder / "predictions" / f"after-{after}" / f"{name}.jsonl"
            if file.is_file():
                if seal := seals.get((after, name)):
                    check_file(file, seal, FILE)
                found += _inputs(file)
                break
    # those of the last tasks, where a loss would show first
    return (found[-MOST:], True) if found else (list(GENERAL), False)


def _inputs(file: Path) -> list[str]:
    try:
        with file.open(encoding="utf-8") as lines:
            return [str(json.loads(line)["input"]) for _, line in zip(range(EACH), lines, strict=False)]
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{file}: not readable as predictions: {error!r}; restore it from a copy.") from error


def prompts(texts: Sequence[str], source: Source, tokenizer: Any) -> list[list[int]]:
    """The questions as token ids, in the form in which the model was trained."""
    if source.record.rendering.get("form", PLAIN) == PLAIN or not tokenizer.chat_template:
        return [tokenizer(text, truncation=True, max_length=512)["input_ids"] for text in texts]
    template = ChatTemplate(tokenizer)
    asked = [template.prompt([{"role": "user", "content": text}], None, "A question") for text in texts]
    return [tokenizer(text, add_special_tokens=False)["input_ids"][-512:] for text in asked]


@torch.no_grad()
def answers(model: Any, asked: Sequence[Sequence[int]], tokenizer: Any) -> list[list[int]]:
    """What a model answers greedily to each prompt, as token ids."""
    model.eval()
    device = model.get_input_embeddings().weight.device
    found = []
    for ids in asked:
        whole = torch.tensor([list(ids)], device=device)
        out = model.generate(
            input_ids=whole,
            attention_mask=torch.ones_like(whole),
            max_new_tokens=LENGTH,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
        found.append(out[0].tolist())
    return found
