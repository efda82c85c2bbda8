"""One process of two in which a learner works."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kifuse import ContinualLearner
from kifuse.learning import repair as repairing
from kifuse.record.lineage import LearnReport
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


def open_learner(
    model: str, folder: Path, progress: Progress | bool, dropout: float = 0.1, **options: Any
) -> ContinualLearner:
    """Make a learner, or go on with it."""
    settings = {
        "model": {"precision": "fp32", "adapter": {"rank": 2, "alpha": 8, "dropout": dropout}},
        "data": {"max_input": 64, "max_target": 8},
        "memory": {"per_task": 3},
        "training": {"learning_rate": 1e-2, "epochs": 3, "batch_size": 4, "checkpoint_minutes": 0},
        "evaluation": {"max_new_tokens": 2, "batch_tokens": 64},
    }
    method = {"name": "recurrent-kif", "inner_steps": 2}
    return ContinualLearner(model, method, folder, settings=settings, progress=progress, **options)


def costs(report: LearnReport, limit: float) -> dict[str, float]:
    """Say that the second task costs the first one a point, until it is repaired."""
    return {} if report.task == "colour" or report.repaired else {"colour": 1.0}


def repaired(model: str, stream: str, folder: Path) -> ContinualLearner:
    """Learn two tasks without dropout; the second one is said to cost too much, and is pulled back twice."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LearnReport, "over", costs)
        patch.setattr(repairing, "WORST", 0.1)
        patch.setattr(repairing, "MOST_STEPS", 2)
        learner = open_learner(model, folder, False, dropout=0.0, max_forgetting=100, repair=True)
        for task in ("colour", "fruit"):
            learner.learn(f"{stream}/{task}")
    return learner


def work(learner: ContinualLearner, stream: str) -> dict[str, Any]:
    """Learn, score, refuse, take back, watch; return all that this process knows in the end."""
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
    return told


def main(how: str, model: str, stream: str, output: str, dies: str = "") -> None:
    """Work in the folder `killed` until one process dies. Started again, go on there and do all the rest.

    With `pieces`, FSDP2 cuts the model.
    """
    torch.set_num_threads(1)
    folder, rank = Path(output), os.environ["RANK"]
    if how == "pieces":
        from tests.contract.script_in_pieces import cut_by_accelerate

        cut_by_accelerate()
    if dies:
        work(open_learner(model, folder / "killed", KilledIn("fruit", 5) if rank == dies else False), stream)
    for name in ("killed", "whole"):
        told = work(open_learner(model, folder / name, False), stream)
        (folder / f"{name}-{rank}.json").write_text(json.dumps(told), encoding="utf-8")
    repaired(model, stream, folder / "repaired")
    end_together()


if __name__ == "__main__":
    main(*sys.argv[1:])
