"""One state, one seal: what was swapped, edited, cut or emptied is refused by name, and locks nobody out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from kifuse import ContinualLearner, Task
from kifuse.errors import KifuseError, ModelError, RunError
from kifuse.io.storage import write_json
from kifuse.page_refresh import run
from kifuse.reporting.changes import changes
from kifuse.running.progress import Progress
from tests.damages import DAMAGES
from tests.learners import METHOD, Make, settings_of
from tests.runs import make_config

pytestmark = pytest.mark.usefixtures("quick")

PLAIN = {"name": "sequential"}


class Told(Progress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def _load(folder: Path, **options: Any) -> ContinualLearner:
    return ContinualLearner.load(folder, **{"progress": False, **options})


@pytest.mark.parametrize("name", ["state/after-2", "adapters/after-2"])
def test_another_state_in_the_place_of_the_newest_is_refused_by_name_and_passed_over(
    make: Make, tasks: list[Task], name: str
):
    learner = make(PLAIN)
    for task in tasks[:2]:
        learner.learn(task)
    place = learner.folder / name
    shutil.rmtree(place)
    shutil.copytree(place.with_name("after-1"), place)
    with pytest.raises(RunError, match=rf"{name}/.*Or continue from the newest complete state.*'colour'"):
        _load(learner.folder)
    told = Told()
    again = _load(learner.folder, at="fruit", progress=told)
    assert again.tasks == ["colour"]
    assert any("the state after 'fruit' is not used" in line and name in line for line in told.lines)
    assert (learner.folder / "rolled-back" / "1" / name).is_dir()
    assert again.learn(tasks[1]).accepted


def test_every_damage_of_a_learners_record_and_kept_tasks_is_refused_by_name(make: Make, tasks: list[Task]):
    learner = make(PLAIN)
    for task in tasks[:2]:
        learner.learn(task)
    for name in ("record.json", "tasks/1.json", "tasks/2.json", "state/after-2/manifest.json"):
        file = learner.folder / name
        whole = file.read_bytes()
        for kind, damage in DAMAGES.items():
            if kind == "an older version":
                continue
            damage(file, None)
            with pytest.raises(KifuseError, match=str(name if kind != "deleted" else Path(name).name)):
                _load(learner.folder).learn(tasks[2])
            file.write_bytes(whole)
    assert _load(learner.folder).learn(tasks[2]).accepted


@pytest.mark.parametrize("change", ["a score", "a name", "no seal"])
def test_an_edited_record_is_refused(make: Make, tasks: list[Task], change: str):
    learner = make(PLAIN)
    learner.learn(tasks[0])
    file = learner.folder / "record.json"
    found = json.loads(file.read_text("utf-8"))
    if change == "a score":
        found["scores"][0]["score"] = 99.0
    elif change == "a name":
        found["tasks"][0]["name"] = "hue"
    else:
        del found["seal"]
    write_json(file, found)
    with pytest.raises(
        RunError, match=r"record\.json: its (content is not what was written|seal is missing)"
    ):
        _load(learner.folder)


def test_edited_predictions_are_said_where_they_are_read(
    tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path
):
    run(make_config(tiny_folder_llama, tiny_stream, tmp_path / "run", PLAIN))
    assert changes(tmp_path / "run").notes == []
    file = tmp_path / "run" / "predictions" / "after-3" / "colour.jsonl"
    file.write_text(file.read_text("utf-8").replace('"score": 0.0', '"score": 1.0'), encoding="utf-8")
    assert any(
        "colour.jsonl: its content is not what was written" in n for n in changes(tmp_path / "run").notes
    )


def test_another_base_model_at_the_same_path_is_refused(
    tiny_folder_llama: Path, tiny_stream: Path, tasks: list[Task], tmp_path: Path
):
    model = shutil.copytree(tiny_folder_llama, tmp_path / "model")
    settings = settings_of(model, tiny_stream)
    learner = ContinualLearner(str(model), METHOD, tmp_path / "desk", settings=settings, progress=False)
    learner.learn(tasks[0])
    weights = model / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ModelError, match=r"model\.safetensors: is not the file that the training began with"):
        _load(learner.folder)
    weights.write_bytes(whole)
    (model / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    with pytest.raises(ModelError, match=r"chat_template\.jinja: (was not there|is not the file)"):
        _load(learner.folder)
    # the same files with another time, in another place
    moved = shutil.copytree(tiny_folder_llama, tmp_path / "moved", copy_function=shutil.copyfile)
    assert _load(learner.folder, model=str(moved)).tasks == ["colour"]


def test_a_folder_of_an_earlier_kifuse_is_sealed_once(make: Make, tasks: list[Task]):
    learner = make(PLAIN)
    learner.learn(tasks[0])
    file = learner.folder / "record.json"
    old = json.loads(file.read_text("utf-8"))
    for part, keys in ((old, ["seal"]), (old["model"], ["files"]), (old["tasks"][0], ["seal", "kept"])):
        for key in keys:
            del part[key]
    for cell in old["scores"]:
        del cell["predictions"]
    write_json(file, old)
    told = Told()
    record = _load(learner.folder, progress=told).record
    # opening the folder again can take more memory than learning took
    assert record.model_copy(update={"peak_memory_mb": learner.record.peak_memory_mb}) == learner.record
    assert sum("they are sealed now" in line for line in told.lines) == 1
    told = Told()
    assert _load(learner.folder, progress=told).learn(tasks[1]).accepted
    assert not any("sealed" in line for line in told.lines)


def test_a_page_that_a_kill_left_behind_its_record_is_drawn_anew(make: Make, tasks: list[Task]):
    learner = make(PLAIN)
    learner.learn(tasks[0])
    page = learner.folder / "report.html"
    page.unlink()
    _load(learner.folder)
    drawn = page.stat().st_mtime_ns
    _load(learner.folder)
    assert page.stat().st_mtime_ns == drawn


def test_a_finished_run_says_that_its_last_adapter_is_gone(
    tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path
):
    config = make_config(tiny_folder_llama, tiny_stream, tmp_path / "run", PLAIN)
    run(config)
    shutil.rmtree(tmp_path / "run" / "adapters" / "after-3")
    told = Told()
    run(config, progress=told)
    assert any("adapters/after-3, the last adapter of this finished run" in line for line in told.lines)


def test_a_folder_that_cannot_be_written_to_still_answers_and_scores(
    make: Make, tasks: list[Task], monkeypatch: pytest.MonkeyPatch
):
    learner = make(PLAIN)
    learner.learn(tasks[0])
    expected = learner.evaluate()
    before = {p: p.read_bytes() for p in learner.folder.rglob("*") if p.is_file()}

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise OSError(30, "Read-only file system")

    for name in ("replace", "rename", "mkdir"):
        monkeypatch.setattr(f"os.{name}", refuse)
    monkeypatch.setattr("kifuse.io.lock.FileLock.acquire", refuse)
    told = Told()
    reading = _load(learner.folder, progress=told)
    assert reading.evaluate() == expected and len(reading.generate(["harbour"])) == 1
    assert any("score but not learn" in line for line in told.lines)
    with pytest.raises(RunError, match="cannot be written to: Read-only file system"):
        reading.learn(tasks[1])
    assert {p: p.read_bytes() for p in learner.folder.rglob("*") if p.is_file()} == before
