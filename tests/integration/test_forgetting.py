"""A task is forgotten on request: its texts are nowhere in the folder, and what was there still holds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kifuse import ContinualLearner, DataError, RunError
from kifuse.cli import app
from kifuse.learning import erased_texts as forgetting
from kifuse.learning.folder import LearnerFolder
from kifuse.record.lineage import LearnReport
from kifuse.record.run_record import RunRecord
from kifuse.running.snapshot import Snapshots
from tests.learners import settings_of

pytestmark = pytest.mark.usefixtures("quick")
MONTHS = ("october", "november", "december")


@pytest.fixture(scope="module")
def months(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tasks whose every text names the month."""
    folder = tmp_path_factory.mktemp("months")
    for month in MONTHS:
        (folder / month).mkdir()
        for split, count in (("train", 8), ("test", 2)):
            rows = [
                {"input": f"{month}-secret-{split}-{i} of a customer", "output": ("red", "blue")[i % 2]}
                for i in range(count)
            ]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / month / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return folder


def begin(folder: Path, model: Path, stream: Path, method: Any) -> ContinualLearner:
    settings = settings_of(model, stream)
    return ContinualLearner(str(model), method, folder, settings=settings, progress=False)


def holding(folder: Path, text: str) -> list[str]:
    """Files that hold a text, or have it in their name."""
    return [
        each.relative_to(folder).as_posix()
        for each in sorted(folder.rglob("*"))
        if each.is_file() and text.encode() in each.read_bytes()
    ]


def check(folder: Path) -> RunRecord:
    """Every state is as its record says, in the folder and in what was moved aside."""
    record = RunRecord.load(folder)
    for k, entry in enumerate(record.tasks, start=1):
        Snapshots(folder).check(k, entry.seal)
    for file in folder.glob("rolled-back/*/record.json"):
        there = RunRecord.load(file.parent)
        for state in file.parent.glob("state/after-*"):
            k = int(state.name.removeprefix("after-"))
            Snapshots(file.parent).check(k, there.tasks[k - 1].seal)
    return record


@pytest.fixture(scope="module", params=["der++", "recurrent-kif"])
def desk(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_folder_llama: Path,
    months: Path,
    quick: None,
) -> Path:
    """Three months, of which the second one was rolled back once and learned again."""
    method = {"name": "der++", "tokens": 5} if request.param == "der++" else {"name": "recurrent-kif"}
    folder = tmp_path_factory.mktemp("desk") / "desk"
    learner = begin(folder, tiny_folder_llama, months, method)
    learner.learn(months / "october")
    learner.learn(months / "november")
    learner.rollback("october")
    learner.learn(months / "november")
    learner.learn(months / "december")
    # as a training that was killed before the task was on record leaves its file
    shutil.copy(folder / "rolled-back/1/tasks/2.json", folder / "rolled-back/1/tasks/2.json (2)")
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        log.write("note: november-secret-test-0 of a customer is odd\n")
    return folder


@pytest.fixture
def copied(desk: Path, tmp_path: Path) -> Iterator[Path]:
    shutil.copytree(desk, tmp_path / "desk")
    yield tmp_path / "desk"


def test_no_text_of_a_forgotten_task_is_left_and_the_rest_still_holds(
    desk: Path, copied: Path, months: Path
) -> None:
    before = holding(desk, "november-secret")
    assert {"tasks/2.json", "log.txt", "state/after-3/memory.json"} <= set(before)
    assert any(name.startswith("rolled-back/1/") for name in before)
    others = holding(desk, "october-secret")
    learner = ContinualLearner.load(copied, progress=False)
    report = learner.forget("november")
    assert holding(copied, "november-secret") == []
    # of the others nothing is gone but a log of nothing, a cache and the page, which is drawn anew
    assert holding(copied, "october-secret") == others
    record = check(copied)
    assert record.tasks[1].forgotten and record.lineage[-1]["event"] == "forgotten"
    assert report.later == ("december",) and "after-2, after-3" in report.remains[0]
    assert "kifuse forget" in report.commands[0] and "--retrain DATA_OF_december" in report.commands[0]
    memory = learner._engine.memory
    assert memory.tasks == ["october", "december"]
    if learner.config.method.name == "der++":
        # what was stored with an example goes with it
        assert len({name.split(".")[1] for name in _stored(copied, 3)}) == len(memory)
        assert len({name.split(".")[1] for name in _stored(desk, 3)}) > len(memory)
    # it goes on: asked, scored, rolled back and taught, without the task's examples
    assert set(learner.evaluate()) == {"october", "december"}
    with pytest.raises(RunError, match="'november' were forgotten"):
        learner.evaluate(["november"])
    del learner
    learner = ContinualLearner.load(copied, progress=False)
    assert learner.tasks == list(MONTHS)
    assert learner.generate(["x"], task="october")
    learner.forget("november")  # once more, which finds nothing
    rows = [{"input": f"january {i}", "output": "red"} for i in range(6)]
    assert set(learner.learn(rows, name="january").after) == {"october", "december", "january"}
    learner.rollback("october")
    assert learner.tasks == ["october"] and holding(copied, "november-secret") == []
    assert "forgotten" in CliRunner().invoke(app, ["history", str(copied)]).output


class Killed(Exception):
    """Stands for the end of the process."""


def test_a_kill_at_any_write_is_finished_when_the_folder_is_opened(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = {name.split(".")[1] for name in _stored(desk, 2)}
    killed = 0
    for moment in range(100):
        folder = tmp_path / str(moment)
        shutil.copytree(desk, folder)
        forgetting.begin(folder, "november", "2026-11-30", stored)
        with monkeypatch.context() as patch:
            _kill_at(patch, moment)
            try:
                forgetting.finish(folder, RunRecord.load(folder), lambda _: None)
            except Killed:
                killed += 1
            else:
                break
        LearnerFolder(folder, lambda _: None).tidy(RunRecord.load(folder))
        assert holding(folder, "november-secret") == [], moment
        record = check(folder)
        assert record.tasks[1].forgotten == "2026-11-30"
        assert [e["event"] for e in record.lineage].count("forgotten") == 1
        assert not (folder / forgetting.JOURNAL).exists()
        shutil.rmtree(folder)
    assert killed > 10


def _stored(folder: Path, k: int) -> list[str]:
    described = json.loads((folder / "state" / f"after-{k}" / "method.json").read_text("utf-8"))
    return [name for name in described["tensors"] if name.startswith("stored_tensors.")]


def _kill_at(patch: pytest.MonkeyPatch, moment: int) -> None:
    """Let so many writes happen, and none after them."""
    left = [moment]

    def counted(write: Any) -> Any:
        def wrapped(*arguments: Any, **more: Any) -> Any:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return write(*arguments, **more)

        return wrapped

    for name in ("write_json", "write_text", "write_tensors"):
        patch.setattr(forgetting, name, counted(getattr(forgetting, name)))
    patch.setattr(RunRecord, "save", counted(RunRecord.save))
    patch.setattr(Path, "unlink", counted(Path.unlink))


def test_retraining_makes_the_learner_that_never_saw_the_task(
    copied: Path, tiny_folder_llama: Path, months: Path, tmp_path: Path
) -> None:
    call = ["forget", str(copied), "november", "--retrain", str(months / "december"), "--json"]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert [each["task"] for each in report["retrained"]] == ["december"]
    assert set(report["retrained"][0]) == set(LearnReport("", True, {}, {}, 0.0, Path()).facts())
    # of what is there now nothing learned from it, so that no state of it and no command is named
    assert not report["commands"] and not any("after-" in each for each in report["remains"])
    assert "weights in rolled-back/1/, rolled-back/2/ that learned from it" in report["remains"][0]
    record = check(copied)
    assert [entry.name for entry in record.tasks] == ["october", "december"]
    never = begin(tmp_path / "never", tiny_folder_llama, months, record.config["method"])
    never.learn(months / "october")
    never.learn(months / "december")
    for name in ("adapter_model.safetensors",):
        found = [(each / "adapters" / "after-2" / name).read_bytes() for each in (copied, tmp_path / "never")]
        assert found[0] == found[1]
    assert holding(copied, "november-secret") == []


def test_what_cannot_be_forgotten_is_refused_and_nothing_is_changed(copied: Path, months: Path) -> None:
    learner = ContinualLearner.load(copied, progress=False)
    before = {
        each: each.read_bytes() for each in copied.rglob("*") if each.is_file() and each.name != "log.txt"
    }
    with pytest.raises(RunError, match=r"no task 'novembre'.*Did you mean 'november'"):
        learner.forget("novembre")
    with pytest.raises(DataError, match="found data of 2 tasks to retrain on, expected that of 1"):
        learner.forget("november", retrain=[months / "december", months / "october"])
    with pytest.raises(DataError, match="not those that 'december' was learned with"):
        learner.forget("november", retrain=[months / "october"])
    manifest = copied / "state" / "after-1" / "manifest.json"
    manifest.write_text(manifest.read_text("utf-8").replace("sha256", "sha257", 1), encoding="utf-8")
    with pytest.raises(RunError, match="was replaced, edited or damaged"):
        learner.forget("november")
    manifest.write_bytes(before[manifest])
    after = {each: each.read_bytes() for each in before}
    assert after == before and not (copied / forgetting.JOURNAL).exists()


def test_all_that_is_kept_of_a_refused_and_of_a_watched_task_is_forgotten(
    months: Path, tiny_folder_llama: Path, tmp_path: Path
) -> None:
    settings = settings_of(tiny_folder_llama, months)
    learner = ContinualLearner(
        *(str(tiny_folder_llama), "replay", tmp_path / "desk"), settings=settings, progress=False
    )
    learner.learn(months / "october")
    folder, learner.min_score = learner.folder, 100
    assert not learner.learn(months / "november", watch=[months / "december"]).accepted
    learner.min_score = None
    assert any("rolled-back/1/state" in name for name in holding(folder, "november-secret"))
    report = learner.forget("november")
    assert holding(folder, "november-secret") == [] and not report.commands
    assert "weights in rolled-back/1/ that learned from it" in str(report)
    assert str(report).endswith("the learner as it is now has not learned from it")
    assert {"watched/1.json", "predictions/after-1/december.jsonl"} <= set(holding(folder, "december-secret"))
    assert not any("weights" in each for each in learner.forget("december").remains)
    assert holding(folder, "december-secret") == []
    # it is watched no more, and may be learned, or watched again
    report = ContinualLearner.load(folder, progress=False).learn(months / "december")
    assert report.accepted and not report.watched_after
    again = ContinualLearner.load(folder, progress=False)
    again.rollback("october")
    assert set(again.watch(months / "december")) == {"december"}
    assert [entry.name for entry in check(folder).watched] == ["december"]
