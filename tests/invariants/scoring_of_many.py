"""One of the processes that score the same states together, or the only one."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from kifuse.running.progress import Progress
from kifuse.running.runner import run
from tests.processes import end_together
from tests.runs import METHODS, TASKS, make_config

NAMES = ["sequential", "epi", "progprompt", "mocl"]
"""One answers from a cached start, one finds the task itself, one is told the task, one routes inputs."""


class Told(Progress):
    """Keeps the reported progress of each scoring."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int, int]] = []

    def scoring(self, task: str, done: int, total: int) -> None:
        """Take note that some test examples were answered."""
        self.told.append((task, done, total))


def sections(stream: Path) -> dict[str, Any]:
    """Return settings with more batches than processes, labels to guess, a watched task and plain texts."""
    return {
        "model": {"adapter": {"rank": 2, "alpha": 8, "dropout": 0.0}},
        "evaluation": {"max_new_tokens": 4, "batch_tokens": 96, "full_matrix": True},
        "watch": {"tasks": [str(stream.parent / "watched"), str(stream.parent / "texts")]},
    }


def train(model: Path, stream: Path, folder: Path, name: str) -> None:
    """Train in one process, and score on dev."""
    more = {**sections(stream), "data": {"scored_on": "dev"}}
    run(make_config(model, stream, folder / name / "trained", METHODS[name], **more))


def score(model: Path, stream: Path, folder: Path, name: str, output: str) -> Told:
    """Score the existing states, and write the scores to another folder."""
    told = Told()
    config = make_config(model, stream, folder / name / output, METHODS[name], **sections(stream))
    run(config, progress=told, trained=folder / name / "trained")
    return told


def main(model: str, stream: str, folder: str) -> None:
    """Score the states of each method, together with the other process."""
    torch.set_num_threads(1)
    rows = {}
    for name in NAMES:
        told = score(Path(model), Path(stream), Path(folder), name, "two")
        rows[name] = told.told
        assert {task for task, _, _ in told.told} >= set(TASKS)
    (Path(folder) / f"told-{os.environ['RANK']}.json").write_text(json.dumps(rows), encoding="utf-8")
    end_together()


if __name__ == "__main__":
    main(*sys.argv[1:])
