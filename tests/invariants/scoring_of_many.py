"""Some of the processes that score the same states together: all of them, or one alone."""

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
"""Plain answers from a cached start; one that finds the task itself, one that is told it, one that routes."""


class Told(Progress):
    """Keeps how far each scoring was said to be."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int, int]] = []

    def scoring(self, task: str, done: int, total: int) -> None:
        """Some test examples were answered."""
        self.told.append((task, done, total))


def sections(stream: Path) -> dict[str, Any]:
    """More batches than processes, labels to guess, one watched task, and one of plain texts."""
    return {
        "model": {"adapter": {"rank": 2, "alpha": 8, "dropout": 0.0}},
        "evaluation": {"max_new_tokens": 4, "batch_tokens": 96, "full_matrix": True},
        "watch": {"tasks": [str(stream.parent / "watched"), str(stream.parent / "texts")]},
    }


def train(model: Path, stream: Path, folder: Path, name: str) -> None:
    """Train, in one process, scored on dev."""
    more = {**sections(stream), "data": {"scored_on": "dev"}}
    run(make_config(model, stream, folder / name / "trained", METHODS[name], **more))


def score(model: Path, stream: Path, folder: Path, name: str, output: str) -> Told:
    """Score the states that are there, into another folder."""
    told = Told()
    config = make_config(model, stream, folder / name / output, METHODS[name], **sections(stream))
    run(config, progress=told, trained=folder / name / "trained")
    return told


def main(model: str, stream: str, folder: str) -> None:
    """Score what each method has learned, together with the other process."""
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
