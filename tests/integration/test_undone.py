"""What is undone is moved aside whole, whatever fails on the way and wherever."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kifuse import ContinualLearner, RunRecord, Task
from kifuse.errors import KifuseError, RunError
from kifuse.learning.folder import LearnerFolder
from kifuse.learning.learn_task import Gates, settle
from kifuse.running.engine import Engine
from tests.faults import Killed, contents, failing_at, killed, read_only
from tests.learners import Make

pytestmark = pytest.mark.usefixtures("quick")


def _three(make: Make, tasks: list[Task], **options: Any) -> ContinualLearner:
    learner = make({"name": "sequential"}, **options)
    for task in tasks:
        learner.learn(task)
    return learner


def _undone(before: dict[str, bytes], kept: int) -> dict[str, bytes]:
    """Files of the tasks after the first ones."""
    numbers = [f"/after-{k}/" for k in range(kept + 1, 4)] + [f"tasks/{k}.json" for k in range(kept + 1, 4)]
    return {name: data for name, data in before.items() if any(number in name for number in numbers)}


def _check(folder: Path, before: dict[str, bytes], kept: int) -> bool:
    """Every task is where it belongs, as a start finds and leaves it; whether the tasks were undone."""
    LearnerFolder(folder, lambda _: None).tidy(RunRecord.load(folder))
    record, now = RunRecord.load(folder), contents(folder)
    undone = _undone(before, kept)
    assert undone
    assert not [name for name in now if name.endswith(".tmp")]
    for name, data in before.items():
        if len(record.tasks) == 3 or name not in undone:
            assert name == "record.json" or name.startswith("predictions") or now[name] == data, name
        else:
            assert name not in now, name
            assert now[f"rolled-back/1/{name}"] == data, name
    return len(record.tasks) < 3


@pytest.mark.parametrize("fault", [killed, read_only])
def test_a_rollback_that_fails_at_any_file_operation_loses_nothing(
    make: Make, tasks: list[Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[[], None]
):
    learner = _three(make, tasks)
    whole, before = tmp_path / "whole", contents(learner.folder)
    shutil.copytree(learner.folder, whole)
    remembered = learner.record.model_copy(deep=True)
    monkeypatch.setattr(Engine, "restore", lambda self, k: None)
    monkeypatch.setattr(Engine, "tell_saved", lambda self: None)
    undone, number = [], 0
    while True:
        number += 1
        with failing_at(number, fault) as counter, contextlib.suppress(Killed, KifuseError, OSError):
            learner.rollback(1)
        if counter.seen < number:
            break
        if fault is read_only:
            # the same process goes on
            learner.rollback(1)
            assert _check(learner.folder, before, 1)
        else:
            undone.append(_check(learner.folder, before, 1))
        shutil.rmtree(learner.folder)
        shutil.copytree(whole, learner.folder)
        vars(learner.record).update(vars(remembered.model_copy(deep=True)))
    assert number > 20
    if fault is killed:
        assert sorted(undone) == undone and {*undone} == {False, True}


def test_a_refusal_that_is_killed_at_any_file_operation_loses_nothing(
    make: Make, tasks: list[Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    learner = _three(make, tasks)
    before = contents(learner.folder)
    # as the record is when the last task was scored, and not judged yet
    learner.record.lineage.pop()
    learner.record.status = "running"
    learner.record.save(learner.folder)
    for cell in learner.record.scores:
        cell.score = 90.0 - 8 * cell.after
    learner.record.save(learner.folder)
    shutil.copytree(learner.folder, tmp_path / "whole")
    remembered = learner.record.model_copy(deep=True)
    monkeypatch.setattr(Engine, "restore", lambda self, k: None)
    monkeypatch.setattr(Engine, "tell_saved", lambda self: None)
    undone, number = [], 0
    while True:
        number += 1
        with failing_at(number, killed) as counter:
            try:
                with learner._opened.alone():
                    settle(learner._opened, Gates(max_forgetting=5.0))
            except (Killed, KifuseError):
                pass
        if counter.seen < number:
            break
        undone.append(_check(learner.folder, before, 2))
        shutil.rmtree(learner.folder)
        shutil.copytree(tmp_path / "whole", learner.folder)
        vars(learner.record).update(vars(remembered.model_copy(deep=True)))
    assert number > 20
    assert sorted(undone) == undone and {*undone} == {False, True}


def test_what_is_undone_may_lie_on_another_file_system(
    make: Make, tasks: list[Task], monkeypatch: pytest.MonkeyPatch
):
    learner = _three(make, tasks)
    before, rename = contents(learner.folder), os.rename

    def other_system(source: Any, target: Any) -> None:
        if "rolled-back" in str(target) and "rolled-back" not in str(source):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", other_system)
        learner.rollback(1)
    assert _check(learner.folder, before, 1)


def test_a_record_from_an_earlier_time_moves_nothing(make: Make, tasks: list[Task]):
    learner = make({"name": "sequential"})
    learner.learn(tasks[0])
    old = (learner.folder / "record.json").read_bytes()
    learner.learn(tasks[1])
    (learner.folder / "record.json").write_bytes(old)
    before = contents(learner.folder)
    with pytest.raises(RunError, match=r"record\.json: does not list state/after-2, so it is older"):
        ContinualLearner.load(learner.folder, progress=False)
    assert contents(learner.folder) == before


def test_a_refused_task_learned_again_only_reports(
    make: Make, tasks: list[Task], monkeypatch: pytest.MonkeyPatch
):
    learner = make({"name": "sequential"}, max_forgetting=5)
    score = learner._engine.evaluator.score
    monkeypatch.setattr(
        learner._engine.evaluator,
        "score",
        lambda task, after, *a, **k: replace(score(task, after, *a, **k), score=90.0 - 8 * after),
    )
    learner.learn(tasks[0])
    first = learner.learn(tasks[1])
    assert not first.accepted and (first.adapter / "adapter_model.safetensors").is_file()
    before = contents(learner.folder)
    assert learner.learn(tasks[1]) == first
    assert contents(learner.folder) == before
    assert not learner.learn(tasks[2]).accepted, "another task is tried"
    learner.max_forgetting = 8.0
    assert learner.learn(tasks[1]).accepted, "and so is this one where more is allowed"


def test_a_file_in_the_place_of_the_checkpoints_is_said(make: Make, tasks: list[Task]):
    learner = make({"name": "sequential"})
    (learner.folder / "checkpoint").write_text("mine", encoding="utf-8")
    with pytest.raises(RunError, match="checkpoint: is a file, expected a folder"):
        learner.learn(tasks[0])
