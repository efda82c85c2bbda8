"""One process of two in which a learner works."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from kifuse import ContinualLearner
from kifuse.running.progress import Progress
from tests.processes import end_together


class KilledIn(Progress):
    """Kills this process, as `kill -9` does, in a step of a task."""

    def __init__(self, task: str, at: int) -> None:
        self.task, self.at = task, at

    def step(self, task: str, step: int, steps: int, loss: float | None) -> None:
        """A step was taken."""
        if (task, step) == (self.task, self.at):
            os.kill(os.getpid(), signal.SIGKILL)


def open_learner(model: str, folder: Path, progress: Progress | bool) -> ContinualLearner:
    """Make a learner, or go on with it."""
    settings = {
        "model": {"precision": "fp32", "adapter": {"rank": 2, "alpha": 8, "dropout": 0.1}},
        "data": {"max_input": 64, "max_target": 8},
        "memory": {"per_task": 3},
        "training": {"learning_rate": 1e-2, "epochs": 3, "batch_size": 4, "checkpoint_minutes": 0},
        "evaluation": {"max_new_tokens": 2, "batch_tokens": 64},
    }
    method = {"name": "recurrent-kif", "inner_steps": 2}
    return ContinualLearner(model, method, folder, settings=settings, progress=progress)


def main(model: str, stream: str, output: str, dies: str) -> None:
    """Learn, score, refuse, take back, watch; in the end all that this process knows is written down."""
    torch.set_num_threads(1)
    folder, rank = Path(output), os.environ["RANK"]
    progress = KilledIn("fruit", 5) if rank == dies else False
    learner = open_learner(model, folder, progress)
    learner.learn(f"{stream}/colour")
    learner.learn(f"{stream}/fruit")
    told: dict[str, Any] = {"scores": learner.evaluate(), "before": learner.evaluate(after="colour")}
    told["watched"] = learner.watch(f"{stream}/weather")
    told["answers"] = learner.generate(["Where is the ship?"])
    # a limit that nothing reaches: both take it back
    learner.min_score = 100.0
    refused = learner.learn(
        [{"input": "town", "output": "far"}] * 8, name="odd", test=[{"input": "a", "output": "b"}]
    )
    told["refused"], told["tasks"] = refused.reason, learner.tasks
    learner.rollback("colour")
    told["left"] = learner.tasks
    told["again"] = learner.evaluate()
    told["page"] = str(learner.report())
    told["record"] = learner.record.model_dump(mode="json")
    (folder.parent / f"{folder.name}-{rank}.json").write_text(json.dumps(told), encoding="utf-8")
    end_together()


if __name__ == "__main__":
    main(*sys.argv[1:])
