"""Fixtures of the integration tests, such as a learner on a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer

from kifuse import ContinualLearner, Task, read_stream
from tests.learners import METHOD, Make, settings_of


@pytest.fixture
def make(tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path) -> Make:
    def new(method: Any = METHOD, **options: Any) -> ContinualLearner:
        options = {"progress": False, "settings": settings_of(tiny_folder_llama, tiny_stream), **options}
        folder = options.pop("output_dir", tmp_path / "learner")
        return ContinualLearner(str(tiny_folder_llama), method, folder, **options)

    return new


@pytest.fixture
def tasks(tiny_stream: Path) -> list[Task]:
    return list(read_stream(tiny_stream))


@pytest.fixture
def last_labels(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collect the last token that is learned in each row of each training step of any Trainer."""
    found: list[int] = []
    step = Trainer.training_step

    def watched(self: Trainer, model: Any, inputs: Any, *rest: Any) -> Any:
        learned = [row[row != -100].tolist() for row in inputs["labels"]]
        found.extend(row[-1] for row in learned if row)
        return step(self, model, inputs, *rest)

    monkeypatch.setattr(Trainer, "training_step", watched)
    return found
