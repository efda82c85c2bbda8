"""What happens to a learner's folder and to a run's data between two starts, and mistakes of the moment."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from typer.testing import CliRunner

from kifuse import ContinualLearner, RunRecord, Task
from kifuse.adapters.lora import Peft
from kifuse.cli import app
from kifuse.driving import context
from kifuse.driving.target_loss import TargetLoss
from kifuse.errors import ConfigError, DataError, KifuseError, ModelError, RunError
from kifuse.models.loading import empty_model, load_backbone
from kifuse.page_refresh import run
from kifuse.running.mid_task_checkpoint import MiddleKeeper
from kifuse.running.progress import Progress
from tests.learners import METHOD, Make, settings_of
from tests.runs import StopIn, Stopped, make_config, write_stream

pytestmark = pytest.mark.usefixtures("quick")

PLAIN = {"name": "sequential"}


class StopLate(Progress):
    """Ends the run in the last step of its first task."""

    def step(self, task: str, step: int, steps: int, loss: float | None) -> None:
        if step == steps:
            raise Stopped


def _weights(learner: ContinualLearner) -> list[torch.Tensor]:
    return [p.detach().clone() for p in learner.model.parameters() if p.requires_grad]


def _same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_method_with_a_list_among_its_settings_learns(make: Make, tasks: list[Task]):
    learner = make({"name": "forever", "day_steps": 1, "schedule": [1.0, 2.0]})
    assert [learner.learn(task).accepted for task in tasks[:2]] == [True, True]


def test_a_folder_under_the_home_folder_is_one_folder(
    make: Make, tasks: list[Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    learner = make(output_dir="~/desk")
    for task in tasks[:2]:
        learner.learn(task)
    assert not (tmp_path / "~").exists() and learner.folder == tmp_path / "home" / "desk"
    assert ContinualLearner.load("~/desk", progress=False).tasks == ["colour", "fruit"]


def test_after_a_training_cut_short_it_is_what_it_was_before(make: Make, tasks: list[Task]):
    learner = make(progress=StopIn("fruit"))
    learner.learn(tasks[0])
    before, scores = _weights(learner), learner.evaluate()
    for use in (learner.evaluate, lambda: learner.generate(["harbour"]), lambda: _weights(learner)):
        with pytest.raises(Stopped):
            learner.learn(tasks[1])
        use()
        assert _same(_weights(learner), before)
    assert learner.evaluate() == scores


def test_an_adapter_that_cannot_be_written_is_said_and_nothing_is_lost(
    make: Make, tasks: list[Task], monkeypatch: pytest.MonkeyPatch
):
    expected = make(output_dir=make().folder / "other")
    for task in tasks[:2]:
        expected.learn(task)

    def full(*_: Any) -> None:
        raise SafetensorError("I/O error: No space left on device")

    learner = make()
    learner.learn(tasks[0])
    with monkeypatch.context() as patch:
        patch.setattr(Peft, "save", full)
        with pytest.raises(RunError, match=r"the adapter cannot be written.*No space left"):
            learner.learn(tasks[1])
    learner.learn(tasks[1])
    assert learner.tasks == ["colour", "fruit"] and _same(_weights(learner), _weights(expected))


def test_a_training_without_a_good_step_is_not_learned(
    make: Make, tasks: list[Task], monkeypatch: pytest.MonkeyPatch
):
    learner, loss = make(), TargetLoss.__call__
    learner.learn(tasks[0])
    before = _weights(learner)
    with monkeypatch.context() as patch:
        patch.setattr(TargetLoss, "__call__", lambda *a, **k: loss(*a, **k) * float("nan"))
        with pytest.raises(RunError, match="'fruit': nothing was learned: none of its 3 steps"):
            learner.learn(tasks[1])
    assert learner.tasks == ["colour"] and _same(_weights(learner), before)
    assert learner.learn(tasks[1]).accepted


def test_a_name_in_another_case_is_refused_before_any_training(make: Make, tasks: list[Task]):
    learner = make()
    learner.learn(tasks[0])
    with pytest.raises(DataError, match="'colour' and 'Colour', which differ only in letter case"):
        learner.learn(replace(tasks[1], name="Colour"))
    learner.learn(tasks[1])


def test_other_data_under_the_name_of_a_learning_cut_short_is_refused(make: Make, tasks: list[Task]):
    class StopAfter(Progress):
        def scored(self, after: int, task: str, cell: Any) -> None:
            if after == 1:
                raise Stopped

    with pytest.raises(Stopped):
        make(progress=StopAfter()).learn(tasks[0])
    other = replace(tasks[0], train=tasks[0].train[:8])
    with pytest.raises(DataError, match="with other train examples"):
        make().learn(other)
    learner = make()
    assert learner.learn(tasks[0]).accepted
    with pytest.raises(DataError, match="with other test examples"):
        learner.learn(replace(tasks[0], test=tasks[0].test[:2]))


def test_a_task_without_test_examples_is_learned_and_counts_in_no_score(make: Make, tasks: list[Task]):
    learner = make()
    learner.learn(tasks[0])
    alone = learner.learn([{"input": "harbour", "output": "town"}], name="untested")
    learner.learn(tasks[1])
    assert alone.accepted and "untested" not in alone.after
    assert set(learner.evaluate()) == {"colour", "fruit"}
    with pytest.raises(DataError, match="'untested': it has no test examples to score"):
        learner.evaluate("untested")
    final = {s.task: s.score for s in learner.record.scores if s.after == 3}
    assert learner.record.summary()["AP"].value == (final[0] + final[2]) / 2


def test_a_task_with_test_examples_alone_is_scored(make: Make, tasks: list[Task], tmp_path: Path):
    learner = make()
    learner.learn(tasks[0])
    assert learner.evaluate([replace(tasks[1], train=())]).keys() == {"fruit"}
    with pytest.raises(DataError, match="nothing to learn"):
        learner.learn(replace(tasks[1], train=()))


def test_a_base_model_in_another_place_is_told_and_no_other_one_is_taken(
    tiny_folder_llama: Path, tiny_folder_t5: Path, tiny_stream: Path, tasks: list[Task], tmp_path: Path
):
    place = shutil.copytree(tiny_folder_llama, tmp_path / "here")
    settings = settings_of(place, tiny_stream)
    learner = ContinualLearner(str(place), METHOD, tmp_path / "desk", settings=settings, progress=False)
    learner.learn(tasks[0])
    moved = place.rename(tmp_path / "there")
    with pytest.raises(RunError, match=r"is a t5 model of .* parameters, expected the llama model"):
        ContinualLearner.load(tmp_path / "desk", model=str(tiny_folder_t5), progress=False)
    again = ContinualLearner.load(tmp_path / "desk", model=str(moved), progress=False)
    assert again.learn(tasks[1]).accepted
    assert ContinualLearner.load(tmp_path / "desk", progress=False).tasks == ["colour", "fruit"]


def test_a_run_on_a_stream_is_no_learner(tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path):
    run(make_config(tiny_folder_llama, tiny_stream, tmp_path / "run", PLAIN))
    before = (tmp_path / "run" / "record.json").read_bytes()
    with pytest.raises(RunError, match="not a learner"):
        ContinualLearner.load(tmp_path / "run", progress=False)
    assert (tmp_path / "run" / "record.json").read_bytes() == before


def test_a_model_card_may_be_edited(make: Make, tasks: list[Task]):
    learner = make()
    learner.learn(tasks[0])
    card = learner.adapter / "README.md"
    card.write_text(card.read_text("utf-8") + "\nTrained on colours.\n", encoding="utf-8")
    (learner.folder / "state" / "after-1" / ".memory.json.1.tmp").write_text("left", encoding="utf-8")
    assert make().learn(tasks[1]).accepted


def test_a_rollback_puts_aside_all_of_a_task_and_draws_the_page_anew(make: Make, tasks: list[Task]):
    learner = make()
    for task in tasks[:2]:
        learner.learn(task)
    kept = (learner.folder / "tasks" / "2.json").read_bytes()
    page = (learner.folder / "report.html").read_bytes()
    learner.rollback(1)
    assert (learner.folder / "rolled-back" / "1" / "tasks" / "2.json").read_bytes() == kept
    assert not (learner.folder / "tasks" / "2.json").exists()
    assert (learner.folder / "report.html").read_bytes() != page


def test_the_number_of_threads_is_that_of_the_settings(
    make: Make, tiny_folder_llama: Path, tiny_stream: Path, monkeypatch: pytest.MonkeyPatch
):
    told: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    settings = settings_of(tiny_folder_llama, tiny_stream)
    learner = make(settings={**settings, "training": {**settings["training"], "threads": 3}})
    assert told == [3] and learner.record.machine["threads"] == 3


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        (lambda learner, task: learner.generate("harbour"), "expected a list of texts"),
        (lambda learner, task: learner.generate(["harbour"], max_new_tokens=0), "max_new_tokens: found 0"),
        (lambda learner, task: learner.rollback(1.0), r"rollback: found 1\.0"),
        (lambda learner, task: learner.rollback(None), "rollback: found None"),
        (lambda learner, task: learner.learn(task, labels=["a"]), "found labels with a Task"),
        (lambda learner, task: learner.learn("folder", test=[]), "found test= with the folder folder"),
    ],
)
def test_mistakes_of_the_moment_are_said(make: Make, tasks: list[Task], mistake: Any, said: str):
    with pytest.raises((ConfigError, DataError, RunError), match=said):
        mistake(make(), tasks[0])


@pytest.mark.parametrize("options", [{"max_forgetting": "5"}, {"settings": {"model": None}}])
def test_values_of_another_kind_are_said(make: Make, options: dict[str, Any]):
    with pytest.raises(ConfigError, match=r"max_forgetting: found '5'|settings: model: found None"):
        make(**options)


def test_a_stream_without_some_tests_counts_the_others(tiny_folder_llama: Path, tmp_path: Path):
    stream = write_stream(tmp_path / "stream")
    (stream / "fruit" / "test.jsonl").unlink()
    record = run(make_config(tiny_folder_llama, stream, tmp_path / "run", PLAIN))
    assert {(s.after, s.task) for s in record.scores} == {(1, 0), (2, 2), (3, 0), (3, 2)}
    final = [s.score for s in record.scores if s.after == 3]
    assert record.summary()["AP"].value == sum(final) / 2
    assert RunRecord.load(tmp_path / "run").summary()["BWT"].value is not None
    assert "fruit" in (tmp_path / "run" / "report.html").read_text("utf-8")


def test_a_task_with_nothing_to_train_on_is_refused_before_the_first(tiny_folder_llama: Path, tmp_path: Path):
    stream = write_stream(tmp_path / "stream")
    (stream / "weather" / "train.jsonl").unlink()
    with pytest.raises(DataError, match="'weather': it has no training examples"):
        run(make_config(tiny_folder_llama, stream, tmp_path / "run", PLAIN))
    assert not (tmp_path / "run" / "record.json").exists()


def test_an_instruction_that_is_too_long_is_said_before_the_first_task(
    tiny_folder_llama: Path, tmp_path: Path
):
    stream = write_stream(tmp_path / "stream")
    settings = '{"instruction": "' + "Which weather is it there? " * 40 + '", "labels": ["sun", "rain"]}'
    (stream / "weather" / "task.json").write_text(settings, encoding="utf-8")
    with pytest.raises(DataError, match=r"Example weather-.*: the instruction and the answer cue take"):
        run(make_config(tiny_folder_llama, stream, tmp_path / "run", PLAIN))
    assert not (tmp_path / "run" / "record.json").exists()


def test_a_learner_under_deepspeed_is_refused(make: Make, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(RunError, match=r"under DeepSpeed: .* --use_fsdp .* or use 'kifuse run'"):
        make()


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "stopped"])
@pytest.mark.parametrize("change", ["a task more", "other labels", "other rows"])
def test_other_data_than_at_the_start_is_refused(
    tiny_folder_llama: Path, tmp_path: Path, change: str, finished: bool
):
    stream = write_stream(tmp_path / "stream")
    config = make_config(tiny_folder_llama, stream, tmp_path / "run", PLAIN)
    if finished:
        run(config)
    else:
        with pytest.raises(Stopped):
            run(config, progress=StopIn("fruit"))
    if change == "a task more":
        shutil.copytree(stream / "fruit", stream / "herb")
        said = "the tasks are colour, fruit, herb, weather; .* they were colour, fruit, weather"
    else:
        name = "task.json" if change == "other labels" else "train.jsonl"
        file = stream / "colour" / name
        old, new = ('"list_labels": true', '"metric": "rouge_l"') if name == "task.json" else ("ship", "boat")
        text = file.read_text("utf-8")
        assert old in text
        file.write_text(text.replace(old, new), encoding="utf-8")
        said = "of task 'colour' have changed since this run began"
    with pytest.raises(RunError, match=said):
        run(config)


def test_a_finished_run_needs_its_data_no_more(tiny_folder_llama: Path, tmp_path: Path):
    stream = write_stream(tmp_path / "stream")
    config = make_config(tiny_folder_llama, stream, tmp_path / "run", PLAIN)
    record = run(config)
    shutil.rmtree(stream)
    assert run(config) == record


def test_ctrl_c_in_the_last_step_stops_after_the_task(
    tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path
):
    class Press(Progress):
        def __init__(self) -> None:
            self.scored_tasks: list[str] = []

        def step(self, task: str, step: int, steps: int, loss: float | None) -> None:
            if (task, step) == ("colour", steps) and loss is None:
                os.kill(os.getpid(), signal.SIGINT)

        def scored(self, after: int, task: str, cell: Any) -> None:
            self.scored_tasks.append(task)

    config = make_config(tiny_folder_llama, tiny_stream, tmp_path / "run", PLAIN)
    press = Press()
    with pytest.raises(KeyboardInterrupt):
        run(config, progress=press)
    assert press.scored_tasks == []
    learned = [t.train_steps is not None for t in RunRecord.load(tmp_path / "run").tasks]
    assert learned == [True, False, False]
    whole = run(make_config(tiny_folder_llama, tiny_stream, tmp_path / "whole", PLAIN))
    assert [s.score for s in run(config).scores] == [s.score for s in whole.scores]


def test_the_scale_of_fp16_goes_on_with_the_task(
    tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sections = {"training": {"checkpoint_minutes": 0}}
    config = make_config(tiny_folder_llama, tiny_stream, tmp_path / "run", PLAIN, **sections)
    scaler = torch.amp.GradScaler("cpu", init_scale=3.0)
    # without a GPU no training has one of its own
    monkeypatch.setattr(MiddleKeeper, "_scaler", property(lambda _: scaler))

    scaler.scale(torch.ones(1))  # the scale exists from the first use on
    with pytest.raises(Stopped):
        run(config, progress=StopLate())
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)
    run(config)
    assert scaler.get_scale() == 3.0


def test_singular_directions_that_come_out_otherwise_are_said(
    tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sections = {"training": {"checkpoint_minutes": 0}}
    config = make_config(tiny_folder_llama, tiny_stream, tmp_path / "run", {"name": "osf"}, **sections)

    with pytest.raises(Stopped):
        run(config, progress=StopLate())
    monkeypatch.setattr(context, "sums_of", lambda _: ["another machine's"])
    with pytest.raises(RunError, match="in its middle: the frozen tensors are not"):
        run(config)


def test_a_model_under_the_home_folder_is_found(
    tiny_folder_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(tiny_folder_llama, tmp_path / "model")
    assert load_backbone("~/model").model.config.model_type == "llama"
    assert empty_model("~/model")[0].config.model_type == "llama"


def test_the_home_folder_of_nobody_is_no_folder(tmp_path: Path, tiny_stream: Path):
    config = tmp_path / "run.yaml"
    config.write_text(
        f"model: {{name: ~nobody-here/model}}\ndata: {{path: {tiny_stream}}}\n", encoding="utf-8"
    )
    done = CliRunner().invoke(app, ["validate", str(config), "--set", f"output={tmp_path / 'out'}"])
    assert done.exception is None or isinstance(done.exception, SystemExit)
    with pytest.raises(ModelError, match="~nobody-here/model: no such folder"):
        load_backbone("~nobody-here/model")
    with pytest.raises(KifuseError, match="nobody-here"):
        ContinualLearner.load("~nobody-here/desk", progress=False)
