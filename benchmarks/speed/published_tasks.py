"""Time the answers to the fifteen tasks with labels of Long Sequence, against plain `generate`.

The prompts are the papers' own, up to 512 tokens of instruction, options and text. First a model learns a
mixture of all fifteen tasks, so that it answers with their labels, as at the end of a stream. Against batches
of eight all test examples are asked, as in the papers; against one prompt at a time, the first 64 of each
task. The ratio over all tasks is the throughput of the whole evaluation; one more ratio for each task says
where it comes from.

It takes half an hour. So each task's figures are kept as soon as they are there, and a run that was
interrupted goes on.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.speed.evaluation import BATCH, MOST, Answers, compare_one, evaluator_of
from benchmarks.speed.pairs import Ratio, ratio
from benchmarks.speed.plain_user import plain_user

from kifuse import ContinualLearner
from kifuse.benchmarks.catalog import load_benchmark
from kifuse.io.storage import write_text
from kifuse.tasks.task import Task

ORDER = 4
TRAINED, ASKED_ALONE = 16, 64


def compare(quick: bool, data: Path, precision: str, rows: int, results: Path) -> list[Ratio]:
    """Time the answers to every task, and sum them up.

    Args:
        quick: Whether to use only a few examples.
        data: The folder with the benchmark's data.
        precision: `bf16` or `fp32`.
        rows: How many prompts plain generation takes at once.
        results: Folder for the figures so far; it is removed at the end.
    """
    tasks = load_benchmark("long-sequence", ORDER, data).tasks
    most = 4 if quick else ASKED_ALONE if rows == 1 else None
    chosen = [replace(task, test=task.test[:most]) for task in tasks]
    folder = results / f"published-tasks-{precision}-{rows}{'-quick' if quick else ''}"
    files = {task.name: folder / f"{task.name}.json" for task in chosen}
    missing = [task for task in chosen if not files[task.name].is_file()]
    if missing:
        with _learned(tasks, 1 if quick else TRAINED) as adapter, plain_user(adapter, precision) as user:
            evaluator = evaluator_of(adapter, 512, precision)
            for number, task in enumerate(missing, len(chosen) - len(missing) + 1):
                # each way runs once: the answers take minutes
                one = compare_one(task, "labels", evaluator, user, rows, 1, 0)
                write_text(files[task.name], json.dumps(asdict(one)) + "\n")
                print(f"task {number} of {len(chosen)}: {one.ratio.name}: {one.ratio.ratio:.2f}", flush=True)
    every = [_read(file) for file in files.values()]
    turns = zip(*(one.times for one in every), strict=True)
    whole = [(math.fsum(a for a, _ in turn), math.fsum(b for _, b in turn)) for turn in turns]
    note = (
        f"{sum(len(task.test) for task in chosen)} prompts, {precision}; "
        f"{sum(one.texts for one in every)} texts and {sum(one.scores for one in every)} scores the same"
    )
    if rows == 1:
        note += f", {sum(one.batched or 0 for one in every)} texts of its own in batches of {BATCH}"
    total = ratio("answers of all 15 tasks", "Evaluator", every[0].ratio.theirs, whole, note)
    shutil.rmtree(folder)
    return [total, *(one.ratio for one in every)]


@contextmanager
def _learned(tasks: Sequence[Task], examples: int) -> Iterator[Path]:
    """Make an adapter that has learned `examples` examples of each task, for as long as the block lasts."""
    mixture = tuple(one for task in tasks for one in task.train[:examples])
    mixed = replace(tasks[0], name="all", train=mixture, dev=(), test=mixture[:1], labels=None)
    settings = {
        "model": {"adapter": {"dropout": 0.0}},
        "data": {"max_input": 512, "max_target": MOST},
        "training": {"learning_rate": 1e-3, "epochs": 1, "batch_size": 8, "warmup_steps": 5},
    }
    with tempfile.TemporaryDirectory() as folder:
        learner = ContinualLearner("smollm2-135m", "sequential", folder, settings=settings, progress=False)
        learner.learn(mixed)
        yield learner.adapter


def _read(file: Path) -> Answers:
    """Read what was measured for one task."""
    found = json.loads(file.read_text("utf-8"))
    return Answers(**{**found, "ratio": Ratio(**found["ratio"])})
