"""Compare kifuse's greedy generation of answers with plain `generate`, in bf16 and in float32.

A model learns one task with labels and one with free answers, for a minute each. Then it answers both, and a
task that it has not learned yet, as in the evaluation of a stream. The alternative is what a user of PEFT and
Trainer runs, in a process of its own that works in turn with this one: float32 weights under the same
autocast, transformers' own attention, batches of eight in the order of the data, padded on the left, and
`model.generate` with as many new tokens as kifuse allows the task. It is also run with one prompt at a time.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.speed import PRECISIONS
from benchmarks.speed.pairs import Ratio, in_turn, ratio
from benchmarks.speed.plain_user import PlainUser, plain_user
from peft import PeftModel

from kifuse import ContinualLearner
from kifuse.answering.evaluator import Evaluator
from kifuse.benchmarks.catalog import load_benchmark
from kifuse.config.schema import EvaluationConfig
from kifuse.models.loading import Backbone, load_backbone, shrink_frozen
from kifuse.scoring.scores import score_one
from kifuse.tasks.any_task import as_task
from kifuse.tasks.encoding import Encoder
from kifuse.tasks.task import Task

BATCH, MOST = 8, 16
KINDS = ("labels, learned", "labels, not yet learned", "free answers, learned")
INSTRUCTIONS = {
    "01-queue": "Read what a customer of a household shop wrote. Which queue of the support desk does it go "
    "to? Choose one from the options.",
    "02-urgency": "Read what a customer of a household shop wrote. How urgent is it? Choose one from the "
    "options.",
    "03-subject": "Read what a customer of a household shop wrote. Write the subject line of the ticket.",
}


def tasks() -> list[Task]:
    """Return three jobs of the support desk, with instructions and labels as in the published benchmarks."""
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


def learned(folder: Path, quick: bool) -> Path:
    """Make an adapter that has learned the first and the third task."""
    settings = {
        "model": {"adapter": {"dropout": 0.0}},
        "data": {"max_input": 128, "max_target": MOST, "train_examples": 16 if quick else 160},
        "training": {"learning_rate": 2e-3, "epochs": 2, "batch_size": 4, "warmup_steps": 5},
    }
    learner = ContinualLearner("smollm2-135m", "sequential", folder, settings=settings, progress=False)
    for task in (tasks()[2], tasks()[0]):
        learner.learn(replace(task, test=task.test[:1]))
    return learner.adapter


def compare(quick: bool) -> list[Ratio]:
    """Time the answers to a learned task with labels, one not yet learned, and one with free answers."""
    with tempfile.TemporaryDirectory() as folder:
        adapter = learned(Path(folder), quick)
        return [one for precision in PRECISIONS for one in _compare_in(precision, adapter, quick)]


def _compare_in(precision: str, adapter: Path, quick: bool) -> list[Ratio]:
    found = []
    evaluator = evaluator_of(adapter, 128, precision)
    with plain_user(adapter, precision) as user:
        for task, kind in zip(tasks(), KINDS, strict=True):
            some = replace(task, test=task.test[: 8 if quick else 64])
            for rows in (BATCH, 1):
                pairs = 2 if quick else 5
                found.append(compare_one(some, f"{kind}, {precision}", evaluator, user, rows, pairs).ratio)
    return found


def evaluator_of(adapter: Path, max_input: int, precision: str) -> Evaluator:
    """Make a run's evaluator of SmolLM2 with an adapter."""
    backbone = load_backbone("smollm2-135m", precision=precision)
    model = PeftModel.from_pretrained(backbone.model, str(adapter)).eval()
    shrink_frozen(model, backbone.precision)
    return evaluator_with(model, backbone, max_input)


def evaluator_with(model: PeftModel, backbone: Backbone, max_input: int) -> Evaluator:
    """Make an evaluator of a model, with the same batches as in a run."""
    encoder = Encoder(backbone.tokenizer, encoder_decoder=False, max_input=max_input, max_target=MOST)
    return Evaluator(
        model,
        backbone,
        encoder,
        folder=None,
        max_new_tokens=MOST,
        batch_tokens=EvaluationConfig().batch_tokens,
    )


@dataclass(frozen=True)
class Answers:
    """The timed answers to one task.

    Attributes:
        ratio: The result.
        times: Pairs of seconds.
        texts: How many texts are the same.
        scores: How many texts have the same score.
        batched: For one prompt at a time: how many of its texts plain generation in batches gives, too.
    """

    ratio: Ratio
    times: list[tuple[float, float]]
    texts: int
    scores: int
    batched: int | None = None


def compare_one(
    task: Task, kind: str, evaluator: Evaluator, user: PlainUser, rows: int, pairs: int, warm_up: int = 1
) -> Answers:
    """Time the answers to one task."""
    encoded = evaluator.encoder.encode_many(task.test)
    prompts = [item.input_ids for item in encoded]
    texts: dict[str, list[str]] = {}

    def ours() -> None:
        texts["ours"] = evaluator.answers(task, encoded)

    def theirs() -> None:
        texts["theirs"] = user.answers(prompts, rows, evaluator.limit(task))

    times = in_turn(ours, theirs, pairs, warm_up)
    same = sum(a == b for a, b in zip(texts["ours"], texts["theirs"], strict=True))
    scores = [
        [
            score_one(text, one.references, task.metric, task.labels)
            for text, one in zip(answers, task.test, strict=True)
        ]
        for answers in (texts["ours"], texts["theirs"])
    ]
    alike = sum(a == b for a, b in zip(*scores, strict=True))
    note = f"{len(prompts)} prompts, {evaluator.backbone.precision}; {same} texts and {alike} scores the same"
    batched = None
    if rows == 1:
        others = user.answers(prompts, BATCH, evaluator.limit(task))
        batched = sum(a == b for a, b in zip(others, texts["theirs"], strict=True))
        note += f", {batched} texts of its own in batches of {BATCH}"
    found = ratio(
        f"answers of {task.name} ({kind})",
        "Evaluator",
        f"model.generate, batches of {rows}" if rows > 1 else "model.generate, one prompt at a time",
        times,
        note,
    )
    return Answers(found, times, same, alike, batched)
