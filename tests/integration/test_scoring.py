"""How a learner scores what its model answers: in any script, and by a function of one's own."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kifuse import ContinualLearner, Example, RunRecord, Task, TaskStream
from kifuse.answering.evaluator import Evaluator
from kifuse.config import DataConfig
from kifuse.errors import DataError, RunError
from kifuse.running.run_start import check_data, task_record
from kifuse.scoring import own_function
from kifuse.streams import open_stream
from kifuse.tasks.any_task import as_task
from kifuse.tasks.encoding import Encoder
from tests.learners import Make

pytestmark = pytest.mark.usefixtures("quick")


def score_of(answers: list[str], references: list[str], tokenizer: Any, folder: Path, **task: Any) -> Any:
    """The cell of a task whose model gives these answers."""
    evaluator = Evaluator(
        torch.nn.Module(),
        SimpleNamespace(tokenizer=tokenizer, encoder_decoder=False),  # pyright: ignore[reportArgumentType]
        Encoder(tokenizer, encoder_decoder=False, max_input=64, max_target=16),
        folder=folder,
        max_new_tokens=8,
        batch_tokens=64,
    )
    evaluator.answers = lambda *_, **__: answers
    examples = tuple(Example("", f"q{n}", "", (each,)) for n, each in enumerate(references))
    fields = {"labels": None, "metric": "exact_match", **task}
    return evaluator.score(Task("t", (), (), examples, **fields), 1)


def test_an_answer_that_ends_with_a_special_token_is_right(tiny_tokenizer: Any, tmp_path: Path) -> None:
    for metric in ("exact_match", "rouge_l", "chrf", "macro_f1"):
        cell = score_of(["red", "blue"], ["red</s>", "blue<|end|>"], tiny_tokenizer, tmp_path, metric=metric)
        assert cell.score == 100.0
    written = (tmp_path / "after-1" / "t.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["references"] for line in written] == [["red</s>"], ["blue<|end|>"]]
    labels = ("red</s>", "blue</s>")
    cell = score_of(["red", "pink"], ["red</s>", "blue</s>"], tiny_tokenizer, tmp_path, labels=labels)
    assert (cell.score, cell.valid) == (50.0, 50.0)


def test_an_answer_of_nothing_but_a_special_token_is_refused(tiny_tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="consists of special tokens only"):
        score_of(["", "</s>"], ["</s>", "</s>"], tiny_tokenizer, tmp_path)


def test_emoji_are_answers(tiny_tokenizer: Any, tmp_path: Path) -> None:
    cell = score_of(["😀", "😀"], ["😀", "😡"], tiny_tokenizer, tmp_path, metric="rouge_l")
    assert cell.score == 50.0


def test_grades_are_told_apart(tiny_tokenizer: Any, tmp_path: Path) -> None:
    labels = ("A", "A-", "A+")
    cell = score_of(["A", "A", "a."], ["A-", "A", "A"], tiny_tokenizer, tmp_path, labels=labels)
    assert (cell.score, cell.valid) == (pytest.approx(100 / 3), pytest.approx(200 / 3))


@pytest.fixture
def scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file of a function in the working directory."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "house_scores.py"
    file.write_text("def score(prediction, references):\n    return 0.25\n")
    yield file
    sys.modules.pop("house_scores", None)


def rows(count: int) -> list[dict[str, str]]:
    return [{"input": f"What is the topic? {n}", "output": "Sports"} for n in range(count)]


def test_a_function_of_ones_own_scores_a_task_for_months(make: Make, scores: Path, tmp_path: Path) -> None:
    first = make({"name": "sequential"}).learn(
        rows(6), name="january", test=rows(2), metric="house_scores:score"
    )
    assert first.after == {"january": 25.0}
    entry = RunRecord.load(tmp_path / "learner").tasks[0]
    assert entry.metric == "house_scores:score" and entry.comparison is None
    assert entry.metric_source is not None and len(entry.metric_source) == 64
    scores.write_text("def score(prediction, references):\n    return 0.5\n")
    del sys.modules["house_scores"]
    later = ContinualLearner.load(tmp_path / "learner", progress=False)
    second = later.learn(rows(6), name="february", test=rows(2), metric="chrf")
    assert second.after["january"] == 50.0
    said = [line for line in later.record.warnings if "house_scores" in line]
    assert len(said) == 1 and "has changed since it was learned" in said[0]
    assert "signs, symbols" in (later.record.tasks[1].comparison or "")
    scores.unlink()
    del sys.modules["house_scores"]
    with pytest.raises(DataError, match=r"tasks.1\.json: metric 'house_scores:score': the working directory"):
        ContinualLearner.load(tmp_path / "learner", progress=False).evaluate()


def test_a_run_does_not_go_on_with_another_function(scores: Path, tmp_path: Path) -> None:
    example = Example("", "q", "", ("a",))
    task = Task("sums", (example,), (), (example,), None, "house_scores:score")
    record = SimpleNamespace(tasks=[task_record(task)])
    stream = TaskStream("s", (task,))
    check_data(tmp_path, record, stream)  # pyright: ignore[reportArgumentType]
    scores.write_text("def score(prediction, references):\n    return 1\n")
    with pytest.raises(RunError, match=r"the source of the metric house_scores:score of task 'sums' ha"):
        check_data(tmp_path, record, stream)  # pyright: ignore[reportArgumentType]


def test_the_configuration_names_what_scores_all_tasks(tiny_stream: Path, scores: Path) -> None:
    data = DataConfig(path=tiny_stream, metric="house_scores:score")
    stream = open_stream(data, seed=0)
    assert {task.metric for task in stream} == {"house_scores:score"}
    assert {task.metric_why for task in stream} == {"named in data.metric"}
    with pytest.raises(DataError, match=r"data\.metric: Task 'colour': metric is 'rouge'.*Did you mean"):
        open_stream(data.model_copy(update={"metric": "rouge"}), seed=0)
    with pytest.raises(DataError, match=r"data\.metric: .*'support-desk', which has its own metric"):
        open_stream(DataConfig(benchmark="support-desk", metric="bleu"), seed=0)


def test_a_folder_of_data_names_no_code_that_runs(
    tiny_stream: Path, scores: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores.write_text("open('ran', 'w').close()\n" + scores.read_text())
    folder = shutil.copytree(tiny_stream / "colour", scores.parent / "data" / "colour")
    said = json.loads((folder / "task.json").read_text()) if (folder / "task.json").exists() else {}
    (folder / "task.json").write_text(json.dumps({**said, "metric": "house_scores:score"}))
    monkeypatch.setattr(own_function, "_named", set())
    data = DataConfig(path=folder.parent)
    for read in (lambda: open_stream(data, seed=0), lambda: as_task(folder)):
        with pytest.raises(
            DataError, match=r"task\.json: metric 'house_scores:score' is code, and a data folder"
        ):
            read()
    assert not Path("ran").exists()
    named = {"own_metrics": ["house_scores:score"]}
    assert {task.metric for task in open_stream(data.model_copy(update=named), seed=0)} == set(
        named["own_metrics"]
    )
    monkeypatch.setattr(own_function, "_named", set())
    assert as_task(folder, metric="house_scores:score").metric == "house_scores:score"
    with pytest.raises(DataError, match=r"data\.own_metrics: metric 'house_scores:sum': the module"):
        open_stream(data.model_copy(update={"own_metrics": ["house_scores:sum"]}), seed=0)


def test_a_folder_of_a_learner_names_no_code_that_runs(
    make: Make, scores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make({"name": "sequential"}).learn(rows(6), name="january", test=rows(2), metric="house_scores:score")
    monkeypatch.setattr(own_function, "_named", set())
    del sys.modules["house_scores"]
    later = ContinualLearner.load(tmp_path / "learner", progress=False)
    assert len(later.generate(["What is the topic?"])) == 1
    for act in (later.evaluate, lambda: later.learn(rows(6), name="february", test=rows(2))):
        with pytest.raises(DataError, match=r"metric 'house_scores:score' is code, and a data folder"):
            act()
    assert later.tasks == ["january"] and "house_scores" not in sys.modules
    named = ContinualLearner.load(tmp_path / "learner", own_metrics=["house_scores:score"], progress=False)
    assert named.evaluate() == {"january": 25.0}
