"""The page's block on what the model read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kifuse.record.run_record import RENDERED, RunRecord
from kifuse.reporting.page import run_page
from kifuse.reporting.run_groups import Run, open_run
from kifuse.reporting.what_was_read import what_was_read
from tests.unit.reporting.measured_runs import kif_record, write_run

RENDERED_EXAMPLE = {
    "prompt": [["<|turn|>", True], ["Is it <good>?", False]],
    "target": [["yes", False], ["</s>", True]],
    "cut": False,
}


@pytest.fixture
def record() -> RunRecord:
    record = kif_record()
    for task in record.tasks:
        task.format, task.metric_why = "input_output in train.jsonl", "labels are given"
        task.repeated, task.contradictions, task.also_trained = {"train": 3, "test": 1}, 0, 2
        task.longest_input, task.longest_target = 700, 9
        task.cut_inputs, task.cut_test_inputs, task.cut_answers, task.cut_test_answers = 5, 1, 0, 0
    record.tasks[0].passed_over = ["the column 'note' was not read."]
    record.tasks[1].format = "messages in train.jsonl"
    return record


def test_counts_facts_and_the_example_stand_on_the_page(record: RunRecord, tmp_path: Path):
    folder = write_run(tmp_path, record)
    (folder / RENDERED).write_text(json.dumps({record.tasks[0].name: RENDERED_EXAMPLE}), encoding="utf-8")
    read = what_was_read(open_run(folder))
    assert read is not None
    assert [cell.text for cell in read.counts.rows[0]][1:] == ["700", "9", "6", "0", "4", "0", "2"]
    names = [task.name for task in record.tasks]
    assert ("read as", f"messages in train.jsonl ({names[1]})") in read.facts
    assert ("scored by", f"{record.tasks[0].metric}: labels are given") in read.facts
    assert read.passed_over == [f"{names[0]}: the column 'note' was not read."]
    page = run_page(open_run(folder))
    assert '<span class="token">&lt;|turn|&gt;</span>Is it &lt;good&gt;?<ins>yes' in page


def test_no_text_of_the_data_stands_on_a_page_without_examples(record: RunRecord, tmp_path: Path):
    folder = write_run(tmp_path, record)
    (folder / RENDERED).write_text(json.dumps({record.tasks[0].name: RENDERED_EXAMPLE}), encoding="utf-8")
    page = run_page(open_run(folder), texts=False)
    assert "Is it &lt;good" not in page and "What the model read" in page


def test_a_record_of_a_kifuse_that_did_not_look_has_no_such_block(tmp_path: Path):
    old = kif_record()
    assert what_was_read(Run(old)) is None
    assert "What the model read" not in run_page(Run(old))


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', '{"a": {"prompt": [1], "target": []}}', "\x00"])
def test_a_damaged_file_of_rendered_examples_costs_the_page_only_them(
    record: RunRecord, tmp_path: Path, text: str
):
    folder = write_run(tmp_path, record)
    (folder / RENDERED).write_text(text.replace('"a"', json.dumps(record.tasks[0].name)), encoding="utf-8")
    read = what_was_read(open_run(folder))
    assert read is not None and read.examples == []


def test_a_very_long_text_loses_its_middle_and_says_so(record: RunRecord, tmp_path: Path):
    folder = write_run(tmp_path, record)
    long = {**RENDERED_EXAMPLE, "prompt": [["<|turn|>", True], ["a" * 50_000, False], ["end", False]]}
    (folder / RENDERED).write_text(json.dumps({record.tasks[0].name: long}), encoding="utf-8")
    read = what_was_read(open_run(folder))
    assert read is not None
    shown = "".join(text for text, _ in read.examples[0].prompt)
    assert len(shown) < 7000 and "characters left out …]" in shown and shown.endswith("end")
