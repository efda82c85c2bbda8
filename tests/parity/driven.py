"""Learn a later task with any method under the real Trainer, and keep the batches that it saw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kifuse.config import TrainingConfig
from kifuse.driving.batches import MemoryBatches
from kifuse.models.loading import Backbone
from kifuse.registry import build_method
from kifuse.running.one_task import TaskTraining, train_task
from kifuse.tasks.encoding import Encoded
from tests.parity.literal import Batch, Values, task_batches, trainable
from tests.two_tasks import adapted, encoded

RATE, DECAY, EPOCHS, SEED, TASK, SIZE = 1e-3, 0.01, 2, 7, 1, 4


def driven(
    backbone: Backbone,
    stream: Path,
    settings: dict[str, Any],
    folder: Path,
    *,
    examples: list[Encoded] | None = None,
    **training: Any,
) -> tuple[dict[int, Values], TaskTraining]:
    """Return the trainable values after every step and after the method's hooks, and the training's outcome.

    The task's examples are those of the stream, unless they are given.
    """
    mine = adapted(backbone)
    _, current, memory = encoded(mine, stream)
    reached: dict[int, Values] = {}

    def keep(step: int, steps: int, loss: float | None, passes: int) -> None:
        reached.setdefault(step, trainable(mine))

    given = {
        "learning_rate": RATE,
        "epochs": EPOCHS,
        "batch_size": SIZE,
        "seed": SEED,
        "scheduler": "constant",
        "weight_decay": DECAY,
        "max_grad_norm": 0.0,
    }
    done = train_task(
        mine.model,
        mine,
        build_method(settings["name"], {k: v for k, v in settings.items() if k != "name"}),
        TrainingConfig(**{**given, **training}),
        index=TASK,
        name="second",
        current=current if examples is None else examples,
        memory=memory,
        folder=folder,
        listener=keep,
    )
    return reached, done


def seen(backbone: Backbone, stream: Path) -> tuple[Values, list[Batch], list[Batch], list[Batch]]:
    """Return the values before the task, its batches, memory batches, and memory batches that probes draw."""
    mine = adapted(backbone)
    _, current, memory = encoded(mine, stream)
    seed = SEED * 1000 + TASK
    steps = task_batches(current, epochs=EPOCHS, seed=seed, size=SIZE)
    drawn, probed = MemoryBatches(memory, SIZE, seed), MemoryBatches(memory, SIZE, -1 - seed)
    return trainable(mine), steps, [drawn.next() for _ in range(40)], [probed.next() for _ in steps]
