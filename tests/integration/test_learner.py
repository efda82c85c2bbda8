"""A learner over months: tasks one by one, in new processes, taken back, refused, gone on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kifuse import ContinualLearner, RunRecord, Task
from kifuse.errors import ConfigError, DataError, ModelError, RunError
from kifuse.running import engine
from kifuse.running.progress import Progress
from tests.learners import METHOD, Make, settings_of
from tests.runs import StopIn, Stopped

pytestmark = pytest.mark.usefixtures("quick")


def _weights(learner: ContinualLearner) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in learner.model.named_parameters() if p.requires_grad}


def _same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_a_new_process_each_month_ends_where_one_process_does(make: Make, tasks: list[Task], tmp_path: Path):
    once = make()
    for task in tasks:
        once.learn(task)
    expected = _weights(once)
    (tmp_path / "learner").rename(tmp_path / "once")
    make()
    for task in tasks:
        ContinualLearner.load(tmp_path / "learner", progress=False).learn(task)
    monthly = ContinualLearner.load(tmp_path / "learner", progress=False)
    assert monthly.tasks == ["colour", "fruit", "weather"]
    assert _same(_weights(monthly), expected)
    first, second = (RunRecord.load(tmp_path / n) for n in ("once", "learner"))
    keep = {"after", "task", "score", "valid", "n"}
    assert [s.model_dump(include=keep) for s in first.scores] == [
        s.model_dump(include=keep) for s in second.scores
    ]


def test_every_task_is_scored_before_and_after_each_learning(make: Make, tasks: list[Task]):
    learner = make()
    reports = [learner.learn(task) for task in tasks]
    cells = {(s.after, s.task) for s in learner.record.scores}
    assert cells == {(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2), (3, 0), (3, 1), (3, 2)}
    last = reports[-1]
    assert last.accepted and set(last.before) == set(last.after) == {"colour", "fruit", "weather"}
    assert last.gained == last.after["weather"] - last.before["weather"]
    for name, points in last.lost.items():
        assert points == last.before[name] - last.after[name] > 0
    history = learner.record.lineage
    assert [e["event"] for e in history] == ["learned"] * 3
    assert history[1]["data"] == tasks[1].split_hash("train")
    assert history[2]["before"] == last.before and history[2]["after"] == last.after


def test_the_first_line_counts_replayed_rows_too(make: Make, tasks: list[Task], monkeypatch: Any):
    planned: list[int] = []
    monkeypatch.setattr(Progress, "begin", lambda self, method, plan, done: planned.append(plan.steps))
    learner = make(method="replay")
    for task in tasks:
        learner.learn(task)
    steps = [task.train_steps for task in learner.record.tasks]
    assert planned == steps and steps[0] < steps[1] < steps[2]


def test_the_adapter_is_a_standard_one(make: Make, tasks: list[Task], tiny_folder_llama: Path):
    from peft import PeftModel

    learner = make()
    learner.learn(tasks[0])
    base = AutoModelForCausalLM.from_pretrained(tiny_folder_llama)
    loaded = PeftModel.from_pretrained(base, str(learner.adapter))
    mine = dict(learner.model.named_parameters())
    for name, value in loaded.named_parameters():
        if "lora_" in name:
            assert torch.equal(value, mine[name])


def test_rolling_back_returns_to_the_very_bits(make: Make, tasks: list[Task], tmp_path: Path):
    learner = make()
    learner.learn(tasks[0])
    after_one = _weights(learner)
    for task in tasks[1:]:
        learner.learn(task)
    learner.rollback(to="colour")
    assert learner.tasks == ["colour"] and _same(_weights(learner), after_one)
    assert _same(_weights(ContinualLearner.load(tmp_path / "learner", progress=False)), after_one)
    moved = tmp_path / "learner" / "rolled-back" / "1"
    assert {p.name for p in (moved / "adapters").iterdir()} == {"after-2", "after-3"}
    assert len(RunRecord.load(moved).tasks) == 3
    assert learner.record.lineage[-1]["tasks"] == ["fruit", "weather"]


def test_what_is_learned_after_a_rollback_is_as_if_nothing_had_been_between(
    make: Make, tasks: list[Task], tmp_path: Path
):
    learner = make()
    for task in (tasks[0], tasks[1]):
        learner.learn(task)
    expected = _weights(learner)
    learner.rollback(to=0)
    for task in (tasks[2], tasks[0]):
        learner.learn(task)
    learner.rollback(to=0)
    for task in (tasks[0], tasks[1]):
        learner.learn(task)
    assert _same(_weights(learner), expected)
    assert (tmp_path / "learner" / "rolled-back" / "2").is_dir()


class _Forgets:
    """Scores that fall for all tasks but the one just learned."""

    def __init__(self, learner: ContinualLearner, monkeypatch: pytest.MonkeyPatch, drop: float) -> None:
        original = learner._engine.evaluator.score

        def score(task: Task, after: int, *args: Any, **kwargs: Any) -> Any:
            import dataclasses

            cell = original(task, after, *args, **kwargs)
            return dataclasses.replace(cell, score=90.0 - drop * after)

        monkeypatch.setattr(learner._engine.evaluator, "score", score)


def test_a_task_that_costs_too_much_is_rolled_back_and_says_so(
    make: Make, tasks: list[Task], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    learner = make(max_forgetting=5)
    _Forgets(learner, monkeypatch, drop=8)
    assert learner.learn(tasks[0]).accepted
    before = _weights(learner)
    report = learner.learn(tasks[1])
    assert not report.accepted
    assert "it cost colour 8.0 points (82.0 to 74.0), and 5 are allowed" in report.reason
    assert report.reason in str(report)
    assert learner.tasks == ["colour"] and _same(_weights(learner), before)
    assert [e["event"] for e in learner.record.lineage] == ["learned", "refused"]
    assert len(learner._engine.memory) == 3, "the memory forgets the task as well"
    assert ContinualLearner.load(tmp_path / "learner", progress=False).tasks == ["colour"]


def test_the_folder_keeps_the_limit_until_another_is_given(
    make: Make, tasks: list[Task], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def load(**options: Any) -> ContinualLearner:
        found = ContinualLearner.load(tmp_path / "learner", progress=False, **options)
        _Forgets(found, monkeypatch, drop=8)
        return found

    first = make(max_forgetting=5)
    _Forgets(first, monkeypatch, drop=8)
    first.learn(tasks[0])
    refused = load().learn(tasks[1])
    assert not refused.accepted and "5 are allowed" in refused.reason
    assert load(max_forgetting=8).learn(tasks[1]).accepted
    assert load().max_forgetting == 8
    assert "max_forgetting" in load().report().read_text("utf-8")
    assert load(max_forgetting=None).max_forgetting is None
    assert load().learn(tasks[2]).accepted
    assert load().max_forgetting is None


def test_a_task_within_the_limit_is_kept(make: Make, tasks: list[Task], monkeypatch: pytest.MonkeyPatch):
    learner = make(max_forgetting=8)
    _Forgets(learner, monkeypatch, drop=8)
    assert [learner.learn(task).accepted for task in tasks] == [True, True, True]


@pytest.mark.parametrize("cells", [0, 1, 2, 3])
def test_a_learning_cut_short_goes_on_where_it_stopped(
    make: Make, tasks: list[Task], tmp_path: Path, cells: int
):
    whole = make()
    for task in tasks[:2]:
        whole.learn(task)
    expected, row = _weights(whole), [s.score for s in whole.record.scores]
    (tmp_path / "learner").rename(tmp_path / "whole")

    class StopAfter(Progress):
        left = cells

        def step(self, task: str, step: int, steps: int, loss: float | None) -> None:
            if cells == 0 and task == "fruit":
                raise Stopped

        def scored(self, after: int, task: str, cell: Any) -> None:
            self.left -= 1
            if self.left == 0:
                raise Stopped

    make().learn(tasks[0])
    with pytest.raises(Stopped):
        ContinualLearner.load(tmp_path / "learner", progress=StopAfter()).learn(tasks[1])
    again = ContinualLearner.load(tmp_path / "learner", progress=False)
    report = again.learn(tasks[1])
    assert report.accepted and report.task == "fruit"
    assert again.tasks == ["colour", "fruit"] and _same(_weights(again), expected)
    assert [s.score for s in again.record.scores] == row
    assert again.record.status == "finished"
    assert [e["event"] for e in again.record.lineage] == ["learned", "learned"]


@pytest.mark.parametrize("first", [True, False], ids=["first task", "second task"])
def test_after_a_failure_the_same_learner_learns_as_if_there_had_been_none(
    make: Make, tasks: list[Task], tmp_path: Path, first: bool
):
    whole = make(progress=False)
    for task in tasks[:2]:
        whole.learn(task)
    expected = _weights(whole)
    (tmp_path / "learner").rename(tmp_path / "whole")

    class FailOnce(Progress):
        failed = False

        def step(self, task: str, step: int, steps: int, loss: float | None) -> None:
            if step == 2 and task == tasks[0 if first else 1].name and not self.failed:
                self.failed = True
                raise Stopped

    learner = make(progress=FailOnce())
    for task in tasks[:2]:
        try:
            learner.learn(task)
        except Stopped:
            learner.learn(task)
    assert learner.tasks == ["colour", "fruit"] and _same(_weights(learner), expected)
    assert [s.score for s in learner.record.scores] == [s.score for s in whole.record.scores]


def test_another_task_after_a_crash_takes_the_place_of_the_unlearned_one(make: Make, tasks: list[Task]):
    make(progress=False).learn(tasks[0])
    with pytest.raises(Stopped):
        make(progress=StopIn("fruit")).learn(tasks[1])
    learner = make()
    learner.learn(tasks[2])
    assert learner.tasks == ["colour", "weather"]
    assert {(s.after, s.task) for s in learner.record.scores} == {(0, 0), (1, 0), (1, 1), (2, 0), (2, 1)}


def test_learning_a_task_twice_does_nothing_and_another_of_its_name_is_refused(make: Make, tasks: list[Task]):
    learner = make()
    first = learner.learn(tasks[0])
    before = _weights(learner)
    assert learner.learn(tasks[0]) == first
    assert _same(_weights(learner), before)
    other = Task("colour", tasks[1].train, (), tasks[1].test, None, "exact_match")
    with pytest.raises(DataError, match=r"'colour': .* was learned with other train examples"):
        learner.learn(other)


def test_rows_datasets_and_paths_are_tasks(make: Make, tiny_stream: Path):
    learner = make()
    rows = [{"input": f"row {i}", "output": ["red", "blue"][i % 2]} for i in range(10)]
    learner.learn(rows, name="rows", labels=["red", "blue"])
    assert learner.record.tasks[0].sizes == {"train": 9, "dev": 0, "test": 1}
    assert any("1 training example was set aside" in w for w in learner.record.warnings)
    datasets = pytest.importorskip("datasets")
    learner.learn(
        datasets.Dataset.from_list([{"prompt": "a", "completion": "b"}] * 4), name="set", test=rows[:2]
    )
    assert learner.record.tasks[1].sizes == {"train": 4, "dev": 0, "test": 2}
    learner.learn(datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}), name="dict")
    learner.learn(tiny_stream / "fruit")
    assert learner.tasks == ["rows", "set", "dict", "fruit"]


def test_a_given_model_is_used_and_asked_for_again(
    tiny_folder_llama: Path, tiny_stream: Path, tasks: list[Task], tmp_path: Path
):
    model = AutoModelForCausalLM.from_pretrained(tiny_folder_llama)
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder_llama)
    settings = settings_of(tiny_folder_llama, tiny_stream)
    del settings["model"]["name"]
    folder = tmp_path / "given"
    learner = ContinualLearner(model, METHOD, folder, tokenizer=tokenizer, settings=settings, progress=False)
    learner.learn(tasks[0])
    after = _weights(learner)
    with pytest.raises(RunError, match="Give it again"):
        ContinualLearner.load(folder)
    fresh = AutoModelForCausalLM.from_pretrained(tiny_folder_llama)
    assert _same(_weights(ContinualLearner.load(folder, fresh, tokenizer=tokenizer, progress=False)), after)
    with pytest.raises(ModelError, match="tokenizer: found none"):
        ContinualLearner(model, METHOD, tmp_path / "x", settings=settings)


def test_all_weights_of_a_model_are_learned_and_taken_up_again(
    tiny_folder_llama: Path, tiny_stream: Path, tasks: list[Task], tmp_path: Path
):
    settings = settings_of(tiny_folder_llama, tiny_stream)
    settings["model"]["adapter"] = {"kind": "full"}
    learner = ContinualLearner(
        str(tiny_folder_llama), METHOD, tmp_path / "full", settings=settings, progress=False
    )
    for task in tasks[:2]:
        learner.learn(task)
    after = _weights(learner)
    assert _same(_weights(ContinualLearner.load(tmp_path / "full", progress=False)), after)
    learner.rollback(to=1)
    assert learner.tasks == ["colour"]
    # no copy is kept of a whole model; its files are read again
    learner.rollback(to=0)
    new = ContinualLearner(
        str(tiny_folder_llama), METHOD, tmp_path / "new", settings=settings, progress=False, min_score=100
    )
    untrained = _weights(new)
    assert learner.tasks == [] and _same(_weights(learner), untrained)
    assert not new.learn(tasks[0]).accepted and _same(_weights(new), untrained)


def test_it_answers_and_scores_what_it_is_asked(make: Make, tasks: list[Task], tiny_stream: Path):
    learner = make()
    learner.learn(tasks[0])
    learner.learn(tasks[1])
    row = {learner.record.tasks[s.task].name: s.score for s in learner.record.scores if s.after == 2}
    before = learner.record.model_copy(deep=True)
    assert learner.evaluate() == row
    assert learner.evaluate(["fruit"]) == {"fruit": row["fruit"]}
    assert set(learner.evaluate([tiny_stream / "weather"])) == {"weather"}
    assert learner.record == before
    answers = learner.generate(["Which colour?\nOption: red, blue\nship\nAnswer:", tasks[0].test[0]])
    assert len(answers) == 2 and all(isinstance(a, str) for a in answers)
    with pytest.warns(
        UserWarning, match=r"1 question longer than data.max_input .* first entry 2; \d,\d+ tok"
    ):
        learner.generate([{"input": "short"}, {"input": "ship " * 1000}], max_new_tokens=1)
    with pytest.raises(DataError, match=r"no task 'frut' was learned.*Did you mean 'fruit'"):
        learner.evaluate(["frut"])


def test_two_learners_of_one_folder_do_not_write_over_each_other(make: Make, tasks: list[Task]):
    one, other = make(), make()
    one.learn(tasks[0])
    with pytest.raises(RunError, match="another process changed this learner"):
        other.learn(tasks[1])


def test_no_training_example_is_kept_but_in_the_memory(make: Make, tasks: list[Task], tmp_path: Path):
    learner = make("kif")
    learner.learn(tasks[0])
    texts = "".join(
        p.read_text("utf-8") for p in (tmp_path / "learner").rglob("*") if p.suffix in {".json", ".jsonl"}
    )
    assert not any(json.dumps(e.body)[1:-1] in texts for e in tasks[0].train)
    assert all(json.dumps(e.body)[1:-1] in texts for e in tasks[0].test)


@pytest.mark.parametrize("part", ["adapters/after-1/adapter_model.safetensors", "state/after-1/memory.json"])
@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_damaged_files_are_named_and_not_loaded(
    make: Make, tasks: list[Task], tmp_path: Path, part: str, damage: str
):
    make().learn(tasks[0])
    file = tmp_path / "learner" / part
    raw = bytearray(file.read_bytes())
    if damage == "cut":
        raw = raw[:-3]
    else:
        raw[-2] ^= 1
    file.write_bytes(raw)
    with pytest.raises(RunError, match=rf"{file.name}.*(bytes, expected|SHA-256 differs).*damaged"):
        make()


def test_mistakes_are_said(make: Make, tasks: list[Task], tiny_folder_llama: Path, tmp_path: Path):
    learner = make()
    with pytest.raises(RunError, match="rollback: no task 'colour' was learned"):
        learner.rollback("colour")
    with pytest.raises(RunError, match="from 0 to 0"):
        learner.rollback(1)
    with pytest.raises(RunError, match="nothing was learned yet"):
        _ = learner.adapter
    with pytest.raises(DataError, match="found rows without a name"):
        learner.learn([{"input": "a", "output": "b"}])
    with pytest.raises(ConfigError, match=r"the option 'lables'.*Did you mean 'labels'"):
        learner.learn([{"input": "a", "output": "b"}], name="x", lables=["b"])
    with pytest.raises(DataError, match="row 1: the field 'output' is missing"):
        learner.learn([{"input": "a"}], name="x")
    with pytest.raises(ConfigError, match="all tasks at once"):
        ContinualLearner(str(tiny_folder_llama), "joint", tmp_path / "j")
    with pytest.raises(ConfigError, match=r"training\.epochs"):
        ContinualLearner("smollm2-135m", "kif", tmp_path / "c", settings={"training": {"epochs": 0}})
    with pytest.raises(ConfigError, match="output_dir"):
        ContinualLearner("smollm2-135m", "kif")
    data = {"metric": "rouge_l", "path": tmp_path}
    with pytest.raises(ConfigError, match=r"data\.metric: found 'rouge_l'.*learn\(task, metric=") as caught:
        ContinualLearner("smollm2-135m", "kif", tmp_path / "m", settings={"data": data})
    assert "data.path" in str(caught.value)
    with pytest.raises(RunError, match="holds another run"):
        make("kif")


def test_the_record_is_not_written_anew_after_each_score(
    make: Make, tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = make({"name": "sequential"})
    learner.learn(tasks[0])
    seconds, written, save = iter(range(10**6)), [], RunRecord.save
    monkeypatch.setattr(engine, "monotonic", lambda: next(seconds))  # a save takes as long as a score

    def count(self: RunRecord, folder: Path) -> None:
        written.append(len(self.scores))
        save(self, folder)

    monkeypatch.setattr(RunRecord, "save", count)
    learner.learn(tasks[1])
    # two after the first task, one before the second; both after it at once
    assert set(written) == {2, 3, 5}
    assert RunRecord.load(learner.folder).scores == learner.record.scores
