"""Train two tasks under the real Trainer, and keep what each step was before and after the method's hooks."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from kifuse.config import TrainingConfig
from kifuse.methods.base import Context, Method
from kifuse.methods.migu import MIGU
from kifuse.methods.parameters import Parameters
from kifuse.models.loading import Backbone
from kifuse.running.one_task import train_task
from kifuse.tasks.encoding import Encoded
from tests.parity.literal import Values, trainable
from tests.two_tasks import adapted, encoded

TRAINING: dict[str, Any] = {"learning_rate": 5e-3, "epochs": 2, "batch_size": 4, "scheduler": "constant"}


@dataclass
class Seen:
    """What was kept of one task."""

    start: Values
    examples: list[Encoded]
    values: list[Values] = field(default_factory=list)
    """Values before each step."""
    raw: list[Values] = field(default_factory=list)
    """Gradients before the method's hook."""
    changed: list[Values] = field(default_factory=list)
    """Gradients after the method's hook."""
    moved: list[Values] = field(default_factory=list)
    """Values after each step and after the method's hooks."""
    magnitudes: list[dict[str, Tensor | None]] = field(default_factory=list)
    end: Values = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)


def _grads(params: Parameters) -> Values:
    return {n: p.grad.clone() for n, p in params.pairs if p.grad is not None}


def train_two(
    backbone: Backbone, stream: Path, method: Method, folder: Path, **training: Any
) -> tuple[Backbone, list[Seen]]:
    """Train a copy of the model on two tasks; return the copy, and what was kept of both tasks."""
    mine = adapted(backbone)
    tasks: list[Seen] = []
    cls: Any = type(method)
    on_gradients, on_update = cls.on_gradients, cls.on_update

    def see_gradients(self: Any, ctx: Context) -> None:
        task, params = tasks[-1], ctx.params
        task.values.append(dict(zip(params.names, params.clone(), strict=True)))
        task.raw.append(_grads(params))
        if isinstance(self, MIGU):
            kept = [None if n is None else n.clone() for n in self._magnitudes.sums]
            task.magnitudes.append(dict(zip(params.names, kept, strict=True)))
        on_gradients(self, ctx)
        task.changed.append(_grads(params))

    def see_update(self: Any, ctx: Context) -> None:
        params = ctx.params
        on_update(self, ctx)
        tasks[-1].moved.append(dict(zip(params.names, params.clone(), strict=True)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cls, "on_gradients", see_gradients)
        patch.setattr(cls, "on_update", see_update)
        for index, examples in enumerate(encoded(mine, stream)[:2]):
            tasks.append(Seen(trainable(mine), examples))
            done = train_task(
                mine.model,
                mine,
                method,
                TrainingConfig(**{**TRAINING, **training}),
                index=index,
                name=str(index),
                current=examples,
                folder=folder,
            )
            tasks[-1].end, tasks[-1].events = trainable(mine), done.events
    return mine, tasks
