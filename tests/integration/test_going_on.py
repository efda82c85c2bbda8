"""A run that is started again: what it refuses to go on with."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import ClassVar

import pytest

from kifuse.errors import RunError
from kifuse.record.run_record import RunRecord
from kifuse.running.progress import Progress
from kifuse.running.runner import run
from tests.runs import make_config

pytestmark = pytest.mark.usefixtures("quick")


def test_data_that_changed_is_refused(tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_stream, data)
    config = make_config(tiny_folder_llama, data, tmp_path / "out", {"name": "sequential"})
    run(config)
    record = RunRecord.load(tmp_path / "out")
    record.status = "running"
    record.save(tmp_path / "out")
    file = data / record.tasks[1].name / "train.jsonl"
    file.write_text(file.read_text(encoding="utf-8").replace("train 0", "another text"), encoding="utf-8")
    with pytest.raises(RunError, match=f"train examples of task '{record.tasks[1].name}' have changed"):
        run(config)


def test_a_finished_run_is_left_as_it_is(
    tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tiny_folder_llama, tiny_stream, tmp_path / "out", {"name": "sequential"})
    run(config)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if p.is_file()}
    monkeypatch.setattr("kifuse.running.run_start.load_backbone", None)  # whoever trains again calls it
    again = run(config)
    assert again.status == "finished"
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if p.is_file()} == before


def test_shared_examples_are_said_and_recorded(
    tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_stream, data)
    leaked = (data / "fruit" / "test.jsonl").read_text(encoding="utf-8").splitlines()[0]
    with (data / "fruit" / "train.jsonl").open("a", encoding="utf-8") as file:
        file.write(leaked + "\n")

    class Told(Progress):
        lines: ClassVar[list[str]] = []

        def say(self, text: str) -> None:
            self.lines.append(text)

    record = run(
        make_config(tiny_folder_llama, data, tmp_path / "out", {"name": "sequential"}), progress=Told()
    )
    assert {
        "task_a": "fruit",
        "split_a": "train",
        "task_b": "fruit",
        "split_b": "test",
        "count": 1,
    } in record.overlaps
    assert sum("fruit 1 of 3 (in fruit/train)" in line for line in Told.lines) == 1
