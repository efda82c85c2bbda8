"""Tasks that are scored and never trained on: in runs, in comparisons, and as a gate of a learner."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from kifuse import ConfigError, ContinualLearner, DataError, RunError
from kifuse.answering.evaluator import Cell, Evaluator
from kifuse.cli import app
from kifuse.io.storage import sha256_file
from kifuse.record.run_record import RunRecord
from kifuse.reporting.page import write_report
from kifuse.running.runner import run
from tests.learners import settings_of
from tests.runs import METHODS, StopIn, Stopped, learned_files, make_config

pytestmark = pytest.mark.usefixtures("quick")
WORDS = ("kept away", "never seen")


@pytest.fixture(scope="module")
def general(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks to watch: one with training examples of its own, which nobody looks at, and one file."""
    folder = tmp_path_factory.mktemp("general")
    for name in ("facts", "manners"):
        (folder / name).mkdir()
        for split, count in (("train", 4), ("test", 3)):
            rows = [{"input": f"{WORDS[i % 2]} {name} {split} {i}", "output": "sun"} for i in range(count)]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / name / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_folder_llama: Path,
    tiny_stream: Path,
    general: Path,
    quick: None,
) -> tuple[Path, Path]:
    """The same run without watched tasks and with them, the second one stopped in its middle and resumed."""
    folder, method = tmp_path_factory.mktemp("runs"), METHODS["recurrent-kif"]
    run(make_config(tiny_folder_llama, tiny_stream, folder / "plain", method))
    watched = make_config(
        tiny_folder_llama, tiny_stream, folder / "watched", method, watch={"tasks": [str(general)]}
    )
    with pytest.raises(Stopped):
        run(watched, progress=StopIn("fruit"))
    assert {s.after for s in RunRecord.load(folder / "watched").watch_scores} == {0, 1}
    run(watched)
    return folder / "plain", folder / "watched"


def test_a_run_trains_bit_for_bit_as_without_watched_tasks(runs: tuple[Path, Path]) -> None:
    plain, watched = map(learned_files, runs)
    assert plain == watched and len(plain) >= 12
    a, b = map(RunRecord.load, runs)
    assert [(s.after, s.task, s.score) for s in a.scores] == [(s.after, s.task, s.score) for s in b.scores]
    assert a.summary() == b.summary()
    assert [t.seal for t in a.tasks] == [t.seal for t in b.tasks]
    assert not any(
        word in text.decode() for name, text in watched.items() if "memory" in name for word in WORDS
    )


def test_watched_tasks_are_scored_before_the_first_task_and_after_each(runs: tuple[Path, Path]) -> None:
    record = RunRecord.load(runs[1])
    assert [(w.name, w.n) for w in record.watched] == [("facts", 3), ("manners", 3)]
    assert [(s.after, s.task) for s in record.watch_scores] == [(k, i) for k in range(4) for i in range(2)]
    assert [t.name for t in record.tasks] == ["colour", "fruit", "weather"]
    for score in record.watch_scores:  # the answers are kept beside those of the stream
        file = runs[1] / "predictions" / f"after-{score.after}" / f"{record.watched[score.task].name}.jsonl"
        assert sha256_file(file) == score.predictions and len(file.read_text("utf-8").splitlines()) == 3
    log = (runs[1] / "log.txt").read_text("utf-8")
    plain = int(re.search(r"steps, (\d+) answers", (runs[0] / "log.txt").read_text("utf-8"))[1])
    assert f"steps, {plain + 4 * 6} answers to score" in log  # before the first task and after each of three
    done = sum(score.n for score in (*record.scores, *record.watch_scores) if score.after < 2)
    assert f"steps, {plain + 4 * 6 - done} answers to score" in log
    page = write_report(runs[1]).read_text("utf-8")
    assert 'id="watched"' in page and "in no average of this page" in page and "before training" in page
    assert 'id="watched"' not in write_report(runs[0]).read_text("utf-8")


def test_other_watched_examples_are_refused_when_a_run_goes_on(
    tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path
) -> None:
    file = tmp_path / "facts.jsonl"
    file.write_text('{"input": "a", "output": "b"}\n', encoding="utf-8")
    config = make_config(
        *(tiny_folder_llama, tiny_stream, tmp_path / "run", METHODS["sequential"]),
        watch={"tasks": [str(file)], "when": "end"},
    )
    with pytest.raises(Stopped):
        run(config, progress=StopIn("fruit"))
    file.write_text('{"input": "a", "output": "c"}\n', encoding="utf-8")
    with pytest.raises(RunError, match="'facts' was watched with other examples"):
        run(config)
    file.write_text('{"input": "a", "output": "b"}\n', encoding="utf-8")
    assert [s.after for s in run(config).watch_scores] == [0, 3]


def test_a_comparison_watches_too(
    tiny_folder_llama: Path, tiny_stream: Path, general: Path, tmp_path: Path
) -> None:
    config = make_config(tiny_folder_llama, tiny_stream, tmp_path / "out", METHODS["sequential"])
    plain = {**config.model_dump(mode="json"), "watch": {"tasks": [str(general / "facts")], "when": "end"}}
    file = tmp_path / "grid.yaml"
    file.write_text(yaml.safe_dump(plain), encoding="utf-8")
    done = CliRunner().invoke(app, ["compare", str(file), "--methods", "sequential,kiflora", "--seeds", "0"])
    assert done.exit_code == 0, done.output
    assert "watched before any task: facts" in done.output
    assert "Tasks that are watched and never trained on" in done.output
    rows = (tmp_path / "out" / "tables" / "watched.csv").read_text("utf-8").splitlines()
    assert [row.split(",")[:2] for row in rows[1:]] == [["facts", "sequential"], ["facts", "kiflora"]]
    assert 'id="watched"' in (tmp_path / "out" / "comparison.html").read_text("utf-8")
    # the first task of the second method is the first's, with what was watched before and after it
    record = RunRecord.load(tmp_path / "out" / "kiflora" / "seed0")
    assert [s.after for s in record.watch_scores] == [0, 3]


@pytest.fixture
def falling(monkeypatch: pytest.MonkeyPatch) -> None:
    """The watched task `facts` falls from 80 to 60 with the second task; everything else is as it is."""
    score = Evaluator.score

    def told(self: Evaluator, task: Any, after: int, *arguments: Any, **options: Any) -> Cell:
        cell = score(self, task, after, *arguments, **options)
        return dataclasses.replace(cell, score=60.0 if after > 1 else 80.0) if task.name == "facts" else cell

    monkeypatch.setattr(Evaluator, "score", told)


def test_max_forgetting_takes_a_task_back_that_costs_a_watched_one_too_much(
    falling: None, tiny_folder_llama: Path, tiny_stream: Path, general: Path, tmp_path: Path
) -> None:
    desk, shared = tmp_path / "desk", ["--watch", str(general), "--json", "--max-forgetting", "15"]
    learner = ContinualLearner(
        *(str(tiny_folder_llama), "replay", desk),
        settings=settings_of(tiny_folder_llama, tiny_stream),
        progress=False,
    )
    assert learner.watch(general / "facts") == {"facts": 80.0}
    assert learner.learn(tiny_stream / "colour").watched_after == {"facts": 80.0}
    before = learned_files(desk)
    del learner
    for _ in range(2):  # the second call only reports
        done = CliRunner().invoke(app, ["learn", str(desk), str(tiny_stream / "fruit"), *shared])
        assert done.exit_code == 3, done.output
        report = json.loads(done.stdout)
        assert not report["accepted"] and "it cost facts 20.0 points (80.0 to 60.0)" in report["reason"]
        assert report["watched"]["after"]["facts"] == 60.0
    assert learned_files(desk) == before
    record = RunRecord.load(desk)
    assert [w.name for w in record.watched] == ["facts", "manners"]
    assert {s.after for s in record.watch_scores} == {0, 1}
    allowed = [*shared[:-1], "20"]
    done = CliRunner().invoke(app, ["learn", str(desk), str(tiny_stream / "fruit"), *allowed])
    assert done.exit_code == 0, done.output
    record = RunRecord.load(desk)
    assert record.lineage[-1]["watched"]["after"]["facts"] == 60.0
    # manners came later, and is scored from the state of that time on
    assert [(s.after, s.task) for s in record.watch_scores] == [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1)]
    learner = ContinualLearner.load(desk, progress=False)
    assert "watched facts: 80.0 -> 60.0 (-20.0)" in str(learner.learn(tiny_stream / "fruit"))


def test_what_cannot_be_watched_is_refused_and_what_is_trained_on_is_said(
    tiny_folder_llama: Path, tiny_stream: Path, general: Path, tmp_path: Path
) -> None:
    settings = settings_of(tiny_folder_llama, tiny_stream)
    learner = ContinualLearner(
        *(str(tiny_folder_llama), "sequential", tmp_path / "desk"), settings=settings, progress=False
    )
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "train.jsonl").write_text('{"input": "a", "output": "b"}\n', encoding="utf-8")
    with pytest.raises(DataError, match="'empty' has no test examples"):
        learner.watch(tmp_path / "empty")
    shared = tmp_path / "shared.jsonl"
    shared.write_text('{"input": "a", "output": "b"}\n', encoding="utf-8")
    learner.watch(shared)
    with pytest.raises(RunError, match="with other examples"):
        learner.watch(dataclasses.replace(learner._place.watched(0, learner.record), metric="rouge_1"))
    with pytest.raises(DataError, match=r"a task of this name is watched.*kifuse forget \S+desk shared"):
        learner.learn([{"input": "c", "output": "d"}] * 3, name="shared")
    row, told = {"input": "a", "output": "b"}, learner.record.model_dump()
    with pytest.raises(DataError, match=r"watch: found 'facts', .*a task that is learned"):
        learner.learn([row] * 3, name="facts", watch=[general])
    assert learner.record.model_dump() == told  # nothing is watched by a call that is refused
    learner.learn([row, {"input": "c", "output": "d"}], name="other", test=[{"input": "e", "output": "d"}])
    (tmp_path / "other.jsonl").write_text(json.dumps(row), encoding="utf-8")
    with pytest.raises(DataError, match=r"watch: found 'other', .*Leave it out or, .* rename"):
        learner.watch(tmp_path / "other.jsonl")
    assert set(learner.evaluate(["shared", "other"])) == {"shared", "other"}
    assert any("1 of its 1 inputs are training inputs of 'other'" in each for each in learner.record.warnings)
    with pytest.raises(ConfigError, match="learner keeps the tasks that it watches"):
        ContinualLearner(
            *(str(tiny_folder_llama), "sequential", tmp_path / "new"),
            settings={**settings, "watch": {"tasks": [str(general)]}},
            progress=False,
        )
