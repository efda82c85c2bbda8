"""Answers to test examples: kifuse's greedy generation beside plain `generate`, in a run's own precision.

A model learns one task with labels and one with free answers, a minute each. It then answers both, and a task
that it has not learned yet, as a stream's evaluation does. The alternative is what a user of PEFT and Trainer
runs: float32 weights under the same autocast, batches of eight in the order of the data, padded on the left,
`model.generate` with as many new tokens as kifuse allows the task; and the same with one prompt at a time.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from benchmarks.speed.pairs import Ratio, in_turn, ratio
from peft import PeftModel

from kifuse import ContinualLearner
from kifuse.benchmarks.catalog import load_benchmark
from kifuse.config.schema import EvaluationConfig
from kifuse.evaluation.scoring import score_one
from kifuse.models.loading import Backbone, load_backbone, shrink_frozen
from kifuse.tasks.encoding import Encoder
from kifuse.tasks.incoming import as_task
from kifuse.tasks.task import Task
from kifuse.training.evaluator import Evaluator

BATCH, MOST = 8, 16
INSTRUCTIONS = {
    "01-queue": "Read what a customer of a household shop wrote. Which queue of the support desk does it go "
    "to? Choose one from the options.",
    "02-urgency": "Read what a customer of a household shop wrote. How urgent is it? Choose one from the "
    "options.",
    "03-subject": "Read what a customer of a household shop wrote. Write the subject line of the ticket.",
}


def tasks() -> list[Task]:
    """Three jobs of the support desk, with instructions and labels as the published benchmarks have them."""
    found = []
    for task in load_benchmark("support-desk").tasks[:3]:
        rows = {
            split: [
                {"input": one.input.splitlines()[1], "output": one.references[0]}
                for one in getattr(task, split)
            ]
            for split in ("train", "test")
        }
        instruction = INSTRUCTIONS[task.name]
        if task.labels:
            made = as_task(
                rows, name=task.name, instruction=instruction, labels=task.labels, list_labels=True
            )
        else:
            made = as_task(rows, name=task.name, instruction=instruction, metric=task.metric)
        found.append(made)
    return found


def plainly(model: Any, tokenizer: Any, prompts: list[list[int]], rows: int, most: int) -> list[str]:
    """What a user writes: batches in the order of the data, padded on the left, `model.generate`."""
    found = []
    tokenizer.padding_side = "left"
    for start in range(0, len(prompts), rows):
        batch = tokenizer.pad({"input_ids": prompts[start : start + rows]}, return_tensors="pt")
        with torch.inference_mode():
            out = model.generate(
                **batch,
                max_new_tokens=most,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        new = out[:, batch["input_ids"].shape[1] :]
        found += [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
    return found


def learned(folder: Path, quick: bool) -> Path:
    """An adapter that has learned the first and the third task."""
    settings = {
        "model": {"adapter": {"dropout": 0.0}},
        "data": {"max_input": 128, "max_target": MOST, "train_examples": 16 if quick else 160},
        "training": {"learning_rate": 2e-3, "epochs": 2, "batch_size": 4, "warmup_steps": 5},
    }
    learner = ContinualLearner("smollm2-135m", "sequential", folder, settings=settings, progress=False)
    for task in (tasks()[2], tasks()[0]):
        learner.learn(Task(**{**vars(task), "test": task.test[:1]}))
    return learner.adapter


def compare(quick: bool) -> list[Ratio]:
    """Time the answers to a learned task with labels, one not yet learned, and one with free answers."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        theirs, plain, evaluator = pair(learned(Path(folder), quick), 128)
    kinds = ("labels, learned", "labels, not yet learned", "free answers, learned")
    for task, kind in zip(tasks(), kinds, strict=True):
        some = Task(**{**vars(task), "test": task.test[: 8 if quick else 64]})
        for rows in (BATCH, 1):
            found.append(compare_one(some, kind, evaluator, theirs, plain, rows, 2 if quick else 5)[0])
    return found


def pair(adapter: Path, max_input: int) -> tuple[Any, Backbone, Evaluator]:
    """The model as a user of PEFT has it, with what it was made of, and kifuse's evaluator of another one."""
    plain, ours = load_backbone("smollm2-135m"), load_backbone("smollm2-135m")
    theirs = PeftModel.from_pretrained(plain.model, str(adapter)).eval()
    model = PeftModel.from_pretrained(ours.model, str(adapter)).eval()
    shrink_frozen(model, ours.precision)
    encoder = Encoder(ours.tokenizer, encoder_decoder=False, max_input=max_input, max_target=MOST)
    evaluator = Evaluator(
        model, ours, encoder, folder=None, max_new_tokens=MOST, batch_tokens=EvaluationConfig().batch_tokens
    )
    return theirs, plain, evaluator


def compare_one(
    task: Task,
    kind: str,
    evaluator: Evaluator,
    theirs: Any,
    plain: Backbone,
    rows: int,
    pairs: int,
    warm_up: int = 1,
) -> tuple[Ratio, list[tuple[float, float]]]:
    """Time the answers to one task; the ratio, and the pairs of seconds that it sums up."""
    encoded = evaluator.encoder.encode_many(task.test)
    prompts = [item.input_ids for item in encoded]
    texts: dict[str, list[str]] = {}

    def ours() -> None:
        texts["ours"] = evaluator.answers(task, encoded)

    def plainly_so() -> None:
        with plain.autocast():
            texts["theirs"] = plainly(theirs, plain.tokenizer, prompts, rows, evaluator.limit(task))

    times = in_turn(ours, plainly_so, pairs, warm_up)
    same = sum(a == b for a, b in zip(texts["ours"], texts["theirs"], strict=True))
    scores = [
        [score_one(text, one.references, task.metric) for text, one in zip(answers, task.test, strict=True)]
        for answers in (texts["ours"], texts["theirs"])
    ]
    alike = sum(a == b for a, b in zip(*scores, strict=True))
    found = ratio(
        f"answers of {task.name} ({kind})",
        "Evaluator",
        f"model.generate, batches of {rows}" if rows > 1 else "model.generate, one prompt at a time",
        times,
        f"{len(prompts)} prompts, {evaluator.backbone.precision}; {same} texts and {alike} scores the same",
    )
    return found, times
