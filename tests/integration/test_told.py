"""What a run tells while it goes on: its log, and the trackers of `training.report_to`."""

from __future__ import annotations

import itertools
import logging
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

from kifuse import ContinualLearner, RunRecord, read_stream
from kifuse.answering import evaluator
from kifuse.config import load_config, loading
from kifuse.errors import ConfigError, RunError
from kifuse.methods.kif import KIF
from kifuse.running.progress import Progress
from kifuse.running.runner import run
from kifuse.scoring.scores import Scored
from tests.months import make_trainer, new_model, rows
from tests.runs import METHODS, TASKS, StopIn, Stopped, adapter, make_config

pytestmark = pytest.mark.usefixtures("quick")


def _installed(*names: str) -> Any:
    for name in names:
        try:
            version(name)
        except PackageNotFoundError:
            return pytest.mark.skip(reason=f"{name} is not installed")
    return pytest.mark.skipif(False, reason="")


def _lines(folder: Path) -> list[str]:
    return [line[22:] for line in (folder / "log.txt").read_text("utf-8").splitlines()]


def _scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard would show: (step, value) by name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return {name: [(e.step, e.value) for e in found.Scalars(name)] for name in found.Tags()["scalars"]}


@pytest.fixture(scope="module")
def plain(
    tiny_folder_llama: Path, tiny_stream: Path, tmp_path_factory: pytest.TempPathFactory, quick: None
) -> Path:
    """The folder of a run that reports to nobody, and shows nothing."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    run(make_config(tiny_folder_llama, tiny_stream, folder, METHODS["recurrent-kif"]))
    return folder


def test_the_log_tells_the_run(plain: Path):
    log = _lines(plain)
    assert log[0].startswith("beginning: recurrent-kif on ") and log[0].endswith(", seed 0")
    assert f"torch {version('torch')}" in log[1]
    # the longest answers are of four and five tokens
    assert log[2].startswith("note: ") and "as evaluation.max_new_tokens is 2: colour 5" in log[2]
    assert log[3] == "tasks: colour, fruit, weather; 0 learned"
    assert log[-1] == "finished"
    record = RunRecord.load(plain)
    for task in record.tasks:
        for (step, loss), (_, rate) in zip(task.loss, task.learning_rate, strict=True):
            expected = rf"{task.name}, step {step}: loss {loss:.6g}, .*learning_rate {rate:.6g}"
            assert any(re.fullmatch(expected, line) for line in log), expected
    for score in record.scores:
        beginning = f"after task {score.after}: {record.tasks[score.task].name} {score.score:.2f}"
        assert any(line.startswith(beginning) for line in log), beginning
    assert [line for line in log if line.startswith("fruit") and ": fusions" in line]
    assert not any(line.startswith("colour") and "fusions" in line for line in log)
    assert "\x1b" not in (plain / "log.txt").read_text("utf-8")


def test_reporting_to_nobody_imports_no_tracker(
    tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("wandb", "trackio", "tensorboard", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)  # an import fails
    config = make_config(tiny_folder_llama, tiny_stream, tmp_path / "run", {"name": "sequential"})
    assert run(config).status == "finished"


@_installed("tensorboard")
def test_tensorboard_gets_one_run_and_the_result_is_the_same(
    plain: Path, tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    numbers = itertools.count(1)  # a model this small answers nothing right

    def score_all(predictions: Any, *_: Any, **more: Any) -> Scored:
        points = [next(numbers) / 100 for _ in predictions]
        return Scored(100.0 * sum(points) / len(points), points, None)

    monkeypatch.setattr(evaluator, "score_all", score_all)
    folder = tmp_path / "run"
    training = {"report_to": ["tensorboard"], "checkpoint_minutes": 0}
    config = make_config(tiny_folder_llama, tiny_stream, folder, METHODS["recurrent-kif"], training=training)
    with pytest.raises(Stopped):
        run(config, progress=StopAt("fruit", 3))
    record = run(config)
    expected = RunRecord.load(plain)
    assert [t.loss for t in record.tasks] == [t.loss for t in expected.tasks]
    mine, theirs = adapter(folder), adapter(plain)
    assert mine.keys() == theirs.keys() and all(mine[key].equal(theirs[key]) for key in mine)

    shown = _scalars(folder)
    losses = [pair for task in record.tasks for pair in task.loss]
    assert [step for step, _ in shown["train/loss"]] == list(range(1, len(losses) + 1))
    assert [loss for _, loss in shown["train/loss"]] == pytest.approx([loss for _, loss in losses])
    assert {"train/learning_rate", "train/fusions", "train/mask_overlap"} <= shown.keys()
    assert [int(k) for _, k in shown["train/task"]] == [1] * 3 + [2] * 3 + [3] * 3
    ends = {score.after: 3 * score.after for score in record.scores}
    for index, name in enumerate(TASKS):
        cells = {ends[s.after]: s.score for s in record.scores if s.task == index}
        assert dict(shown[f"test/score/{name}"]) == pytest.approx(cells)
    summary = record.summary()
    assert shown["test/AP"][-1] == (9, pytest.approx(summary["AP"].value, abs=1e-4))
    assert shown["test/BWT"][-1] == (9, pytest.approx(summary["BWT"].value, abs=1e-4))
    log = _lines(folder)
    assert sum(line.startswith("beginning") for line in log) == 1
    assert "going on after task 1: recurrent-kif on" in " ".join(log) and "finished" in log
    assert any(line.endswith("tests.runs.Stopped") for line in (folder / "log.txt").read_text().splitlines())


class StopAt(Progress):
    """Ends a run after a step of a task."""

    def __init__(self, task: str, step: int) -> None:
        self.moment = (task, step)

    def step(self, task: str, step: int, steps: int, loss: float | None) -> None:
        if (task, step) == self.moment and loss is None:
            raise Stopped


@_installed("tensorboard")
def test_the_orthogonality_term_and_fusion_weights_are_sent(
    tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path
):
    config = make_config(
        tiny_folder_llama,
        tiny_stream,
        tmp_path / "run",
        METHODS["kiflora"],
        training={"report_to": ["tensorboard"]},
    )
    record = run(config)
    shown = _scalars(tmp_path / "run")
    assert [step for step, _ in shown["train/orthogonality"]] == list(range(1, 10))
    ends = [e["weighted_penalty"] for t in record.tasks for e in t.events if e["kind"] == "orthogonality"]
    assert [v for step, v in shown["train/orthogonality"] if step % 3 == 0] == pytest.approx(ends)
    weights = [e["mean_weight_of_previous"] for t in record.tasks for e in t.events if e["kind"] == "fusion"]
    assert shown["train/mean_weight_of_previous"] == [
        (6, pytest.approx(weights[0])),
        (9, pytest.approx(weights[1])),
    ]


@_installed("tensorboard")
def test_a_learners_tasks_and_a_rollback_are_one_run(
    tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path
):
    config = make_config(tiny_folder_llama, tiny_stream, tmp_path, {"name": "sequential"}).model_dump()
    settings = {name: config[name] for name in ("model", "training", "evaluation")}
    settings["training"]["report_to"] = ["tensorboard"]
    settings["data"] = {"max_input": 64, "max_target": 8}
    folder = tmp_path / "learner"
    learner = ContinualLearner(
        str(tiny_folder_llama), "sequential", folder, settings=settings, progress=False
    )
    tasks = list(read_stream(tiny_stream))
    learner.learn(tasks[0])
    learner.learn(tasks[1])
    learner.rollback(1)
    learner.learn(tasks[2])
    shown = _scalars(folder)
    assert [step for step, _ in shown["train/loss"]] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in shown["test/score/weather"]] == [3, 6]
    log = _lines(folder)
    assert sum(line == "finished" for line in log) == 3
    assert any(line.startswith("before any training: colour") for line in log)


@_installed("tensorboard")
def test_in_a_script_of_your_own_a_tracker_that_has_ended_stays_so(
    tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from transformers.integrations import TensorBoardCallback

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tensorboard"))
    method, model = KIF(fusion="average").callback(), new_model(tiny_tokenizer)
    for month, task in enumerate(("colour", "fruit")):
        data, board = rows(tiny_tokenizer, task), TensorBoardCallback()
        trainer = make_trainer(tiny_tokenizer, model, tmp_path / str(month), data, [board, method])
        trainer.train()
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    assert trainer.state.log_history[-1] == {"mean_weight_of_previous": 0.5, "step": 6}


@_installed("wandb", "trackio")
def test_wandb_and_trackio_get_one_run_that_is_gone_on_with(
    plain: Path, tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when trackio is first imported
    import trackio

    if Path(trackio.TRACKIO_DIR) != tmp_path / "trackio":
        pytest.skip("trackio was imported before")
    folder = tmp_path / "run"
    config = make_config(
        tiny_folder_llama,
        tiny_stream,
        folder,
        METHODS["recurrent-kif"],
        training={"report_to": ["wandb", "trackio"]},
    )
    with pytest.raises(Stopped):
        run(config, progress=StopIn("weather"))
    run(config)
    mine, theirs = adapter(folder), adapter(plain)
    assert all(mine[key].equal(theirs[key]) for key in theirs)
    (found,) = trackio.Api().runs("kifuse")
    names = {path.name.rpartition("-")[2] for path in (folder / "wandb").glob("offline-run-*")}
    assert {found.name} == {f"run-{name}" for name in names}
    rows = trackio.sqlite_storage.SQLiteStorage.get_logs("kifuse", found.name)
    steps = [row["train/global_step"] for row in rows if "train/loss" in row]
    assert sorted(set(steps)) == list(range(1, 10))


@pytest.mark.parametrize("start", ["run", "learner", "file"])
def test_a_tracker_that_is_not_installed_is_refused_first(
    start: str, tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("kifuse.config.installed.installed", lambda package: package != "wandb")
    training = {"report_to": ["wandb", "tensorboard"]}
    config = make_config(tiny_folder_llama, tiny_stream, tmp_path / "out", {"name": "kif"}, training=training)
    with pytest.raises(ConfigError, match=r"training.report_to: .*wandb.* not installed.*pip install wandb"):
        if start == "run":
            run(config)
        elif start == "learner":
            settings = {"training": training, "model": {"precision": "fp32"}}
            ContinualLearner(str(tiny_folder_llama), "kif", tmp_path / "out", settings=settings)
        else:
            file = tmp_path / "run.yaml"
            file.write_text(loading.to_yaml(config), encoding="utf-8")
            load_config(file, check_files=True)
    assert not (tmp_path / "out").exists()


@_installed("tensorboard")
def test_a_tracker_that_fails_stops_nothing(
    tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from transformers.integrations import TensorBoardCallback

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(TensorBoardCallback, "on_log", full)
    folder = tmp_path / "run"
    training = {"report_to": ["tensorboard"]}
    config = make_config(tiny_folder_llama, tiny_stream, folder, {"name": "sequential"}, training=training)
    assert run(config).status == "finished"
    told = [line for line in _lines(folder) if "tensorboard failed and gets nothing more: no space" in line]
    assert len(told) == 1


def test_a_tracker_that_cannot_be_begun_is_an_error(
    tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import transformers.integrations

    def refuse(names: list[str]) -> Any:
        raise RuntimeError(f"{names[0]} is out of order.")

    monkeypatch.setattr("kifuse.running.runner.require_packages", lambda *asked: None)
    monkeypatch.setattr(transformers.integrations, "get_reporting_integration_callbacks", refuse)
    training = {"report_to": ["tensorboard"]}
    config = make_config(tiny_folder_llama, tiny_stream, tmp_path / "run", {"name": "kif"}, training=training)
    expected = r"training.report_to: tensorboard could not be started: .* is out of order\. Take it"
    with pytest.raises(RunError, match=expected):
        run(config)
    monkeypatch.undo()
    # nothing that was left in the folder is in the way
    again = make_config(tiny_folder_llama, tiny_stream, tmp_path / "run", {"name": "kif"})
    assert run(again).status == "finished"


def test_a_log_in_the_way_stops_no_run(tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path):
    (tmp_path / "run" / "log.txt").mkdir(parents=True)
    said: list[str] = []

    class Told(Progress):
        def say(self, text: str) -> None:
            said.append(text)

    config = make_config(tiny_folder_llama, tiny_stream, tmp_path / "run", {"name": "sequential"})
    assert run(config, progress=Told()).status == "finished"
    assert sum("the run continues without a log" in line for line in said) == 1
    assert not any(h for h in logging.getLogger("kifuse").handlers if "Warnings" in type(h).__name__)
