"""Methods that are tried on the bench: they train, keep what they promise, and resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from benchmarks.candidates.old_questions import ASKED, OldQuestions

from kifuse.methods.texts import Texts
from kifuse.running.runner import run
from tests.runs import TASKS, make_config

NAME = "benchmarks.candidates.old_questions:OldQuestions"


@pytest.mark.parametrize("replay", [False, True])
def test_old_questions_are_asked_of_new_texts_and_only_of_earlier_tasks(
    replay: bool,
    tiny_folder_llama: Path,
    tiny_stream: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(Path(__file__).parents[3])
    rows_of: dict[str, list[Any]] = {}
    plain = OldQuestions.training_examples

    def seen(self: OldQuestions, ctx: Texts, rows: Any) -> Any:
        found = plain(self, ctx, rows)
        rows_of[ctx.task.name] = [row for row in found if getattr(row, "note", "") == ASKED]
        texts = {row.body for row in rows}
        assert all(row.body in texts for row in rows_of[ctx.task.name])
        return found

    monkeypatch.setattr(OldQuestions, "training_examples", seen)
    method = {"name": NAME, "questions": 3, "replay": replay, "tokens": 5}
    record = run(make_config(tiny_folder_llama, tiny_stream, tmp_path / "run", method))
    assert [len(rows_of[task]) for task in TASKS] == [0, 3, 6]
    assert record.method.data_class == ("real replay" if replay else "replay-free")
    assert (record.replayed() > 0) == replay
    assert len(record.scores) >= len(TASKS)
