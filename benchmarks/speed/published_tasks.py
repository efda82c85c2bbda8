"""Answers to the fifteen closed-label tasks of Long Sequence, beside plain `generate` in batches of eight.

The prompts are the papers' own, up to 512 tokens of instruction, options and text. A model learns a mixture
of all fifteen tasks first, so that it answers with their labels, as at the end of a stream. All test
examples are asked, as the papers do. The throughput of the whole evaluation is the ratio over all tasks; one
more for each task says where it comes from.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.speed.evaluation import BATCH, MOST, compare_one, evaluator_of
from benchmarks.speed.pairs import Ratio, ratio
from benchmarks.speed.plain_user import plain_user

from kifuse import ContinualLearner
from kifuse.benchmarks.catalog import load_benchmark

ORDER = 4
TRAINED = 16


def compare(quick: bool, data: Path) -> list[Ratio]:
    """Time the answers to every task, and sum them up.

    Args:
        quick: Few examples.
        data: The folder with the benchmark's data.
    """
    tasks = load_benchmark("long-sequence", ORDER, data).tasks
    mixture = tuple(one for task in tasks for one in task.train[: 1 if quick else TRAINED])
    mixed = replace(tasks[0], name="all", train=mixture, dev=(), test=mixture[:1], labels=None)
    settings = {
        "model": {"adapter": {"dropout": 0.0}},
        "data": {"max_input": 512, "max_target": MOST},
        "training": {"learning_rate": 1e-3, "epochs": 1, "batch_size": 8, "warmup_steps": 5},
    }
    chosen = [replace(task, test=task.test[:4]) if quick else task for task in tasks]
    with tempfile.TemporaryDirectory() as folder:
        learner = ContinualLearner("smollm2-135m", "sequential", folder, settings=settings, progress=False)
        learner.learn(mixed)
        evaluator = evaluator_of(learner.adapter, 512)
        with plain_user(learner.adapter) as user:
            single = []
            for task in chosen:
                # once each: the answers take minutes
                single.append(compare_one(task, "labels", evaluator, user, BATCH, 1, 0))
                of = f"task {len(single)} of {len(chosen)}"
                print(f"{of}: {single[-1][0].name}: {single[-1][0].ratio:.2f}", flush=True)
    turns = zip(*(pairs for _, pairs in single), strict=True)
    whole = [(math.fsum(a for a, _ in turn), math.fsum(b for _, b in turn)) for turn in turns]
    note = f"{sum(len(task.test) for task in chosen)} prompts; {evaluator.backbone.precision}"
    total = ratio("answers of all 15 tasks", "Evaluator", f"model.generate, batches of {BATCH}", whole, note)
    return [total, *(one for one, _ in single)]
