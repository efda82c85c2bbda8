"""What the helpers of a training know about the training as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from kifuse.driving.batches import MemoryBatches
from kifuse.driving.shards import Shards
from kifuse.methods.context import TaskInfo
from kifuse.methods.parameters import Parameters


class UnderWay(Protocol):
    """A Trainer that is training on a task, and what is counted and noted meanwhile."""

    trainer: Any
    task: TaskInfo
    params: Parameters
    shards: Shards
    memory: MemoryBatches | None
    replayed: int
    extra_passes: int

    def parts(self, batch: Sequence[Any]) -> list[Any]:
        """Collate this process's share of a global batch, in parts of the Trainer's size."""
        ...

    def event(self, kind: str, **values: Any) -> None:
        """Keep an entry for the run's record."""
        ...
