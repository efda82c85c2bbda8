"""What is found in the data: said once in terminal and log, and on record, by a run and a learner alike."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from kifuse import RunRecord
from kifuse.running.progress import Progress
from kifuse.running.runner import run
from tests.learners import Make
from tests.runs import TASKS, make_config

pytestmark = pytest.mark.usefixtures("quick")
NEW = ("longest_input", "longest_target", "repeated", "contradictions", "also_trained", "cut_answers")


class Told(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def _longest(task: str, tokens: int) -> str:
    return (
        "The longest answers are cut when they are generated, as evaluation.max_new_tokens is 2: "
        f"{task} {tokens} tokens; null generates as many as data.max_target."
    )


def test_a_learner_says_what_a_run_says_of_leaks_and_duplicates(make: Make, tmp_path: Path):
    rows = [{"input": f"Where is {i}?", "output": "delivery"} for i in range(12)]
    told = Told()
    learner = make({"name": "sequential"}, progress=told)
    learner.learn({"train": [*rows, rows[0]], "test": rows}, name="a")
    learner.learn([{"input": f"q{i % 2}", "output": "x " * 20} for i in range(30)], name="dup")
    learner.learn({"train": [{"input": "q1", "output": "no"}], "test": rows[:1]}, name="later")
    notes = [line.removeprefix("note: ") for line in told.lines if line.startswith("note: ")]
    assert notes == [
        "Examples that repeat another one of their split (same input, same answers): a/train 1 of 13.",
        "Test examples whose input is also trained on: a 12 of 12 (in a/train).",
        _longest("a", learner.record.tasks[0].longest_target),
        "Task 'dup': 15 training examples were set aside as its test set; examples that ask the same stayed "
        "together.",
        "Examples that repeat another one of their split (same input, same answers): "
        "dup/train 14 of 15, dup/test 14 of 15.",
        "Answers longer than data.max_target (8 tokens) lose their end: dup/train 15 of 15, dup/test 15 of "
        f"15; data.max_target: {-(-learner.record.tasks[1].longest_target // 8) * 8} would hold all.",
        _longest("dup", learner.record.tasks[1].longest_target),
        "Test examples whose input is also trained on: "
        "dup 1 input (in later/train), later 1 of 1 (in a/train).",
        "Inputs that are in two splits: a/test and later/test 1.",
        _longest("later", learner.record.tasks[2].longest_target),
    ]
    log = (tmp_path / "learner" / "log.txt").read_text("utf-8")
    assert all(log.count(f"  note: {each}\n") == 1 for each in notes)
    assert learner.record.warnings == notes
    assert [task.also_trained for task in learner.record.tasks] == [12, 0, 1]
    assert learner.record.tasks[1].cut_answers == 15
    assert RunRecord.load(tmp_path / "learner") == learner.record


def test_a_run_that_an_older_kifuse_began_goes_on_and_gets_the_findings(
    tiny_folder_llama: Path, tiny_stream: Path, tmp_path: Path
):
    config = make_config(tiny_folder_llama, tiny_stream, tmp_path / "out", {"name": "sequential"})
    told = Told()
    new = run(config, progress=told)
    assert [task.repeated for task in new.tasks] == [{}, {}, {}]
    assert all(count == 1 for count in Counter(line for line in told.lines if "note" in line).values())
    assert set(json.loads((tmp_path / "out" / "rendered.json").read_text("utf-8"))) == set(TASKS)

    file = tmp_path / "out" / "record.json"
    old = json.loads(file.read_text("utf-8"))
    for task in old["tasks"]:
        for key in (*NEW, "cut_test_answers", "format", "metric_why", "passed_over", "seal", "kept"):
            del task[key]
    del old["seal"]
    (tmp_path / "out" / "rendered.json").unlink()
    file.write_text(json.dumps(old), "utf-8")
    before = file.read_bytes()
    assert run(config).tasks[0].repeated is None  # finished: it is shown as it is
    assert file.read_bytes() == before
    old["status"] = "running"
    file.write_text(json.dumps(old), "utf-8")
    again = run(config)
    assert [task.model_dump(include=set(NEW)) for task in again.tasks] == [
        task.model_dump(include=set(NEW)) for task in new.tasks
    ]


def test_labels_stand_in_the_same_order_in_every_process_and_so_does_what_follows_from_them(
    tiny_stream: Path,
):
    code = (
        "import sys; from kifuse import read_stream; from kifuse.tasks.any_task import as_task; "
        "rows = [{'input': str(i), 'output': w} for i, w in enumerate(('sun', 'rain', 'snow', 'fog') * 5)]; "
        "given = as_task(rows, name='sky', labels={w['output'] for w in rows}, list_labels=True); "
        "found = as_task([{'text': w['input'], 'label': w['output']} for w in rows], name='found'); "
        # the texts of all examples, prompts and labels, what was set aside, and what is compared
        "print(given.labels, given, found.labels, found, list(read_stream(sys.argv[1])), "
        "[t.split_hash('train') for t in (given, found)])"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code, str(tiny_stream)],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(said) == 1 and "('fog', 'rain', 'snow', 'sun')" in said.pop()
