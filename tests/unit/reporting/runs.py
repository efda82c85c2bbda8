"""Make small records and run folders, as a run leaves them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kifuse.record.run_record import MethodRecord, RunRecord, ScoreRecord, TaskRecord
from kifuse.record.score_matrix import needed_cells

TASKS = ["yelp", "amazon", "mnli", "cb", "copa"]


def make_record(
    method: str = "sequential",
    tasks: list[str] | None = None,
    *,
    drop: float = 10.0,
    full: bool = False,
    data_class: str = "replay-free",
    **fields: Any,
) -> RunRecord:
    """Make a finished run: a task scores 20 before, 90 when learned, and `drop` less with each later task."""
    names = TASKS if tasks is None else tasks
    record = RunRecord(
        kifuse_version="0.1.0",
        status="finished",
        created="2026-01-01T00:00:00+00:00",
        config={"training": {"learning_rate": 3e-4}},
        model={"name": "tiny"},
        method=MethodRecord(name=method, settings={}, data_class=data_class),  # pyright: ignore[reportArgumentType]
        stream="standard-cl",
        tasks=[
            TaskRecord(
                name=name,
                metric="exact_match",
                labels=["a", "b"],
                train_steps=4,
                seconds_train=1.5,
                replayed_examples=3,
            )
            for name in names
        ],
        seeds={"training": 0},
    )
    for after, task in needed_cells(len(names), full):
        score = 90.0 - drop * (after - task - 1) if after > task else 20.0
        record.scores.append(ScoreRecord(after=after, task=task, score=score, valid=98.0, n=50, seconds=0.5))
    for key, value in fields.items():
        setattr(record, key, value)
    return record


def write_predictions(folder: Path, after: int, task: str, right: dict[str, bool]) -> None:
    """Write predictions of a task; `right` says for each input whether its output is right."""
    file = folder / "predictions" / f"after-{after}" / f"{task}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "id": None,
            "input": text,
            "references": ["good"],
            "prediction": "good" if fine else f"bad after {after}",
            "score": float(fine),
            "valid": True,
        }
        for text, fine in right.items()
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
