from __future__ import annotations

import json

import pytest

from kifuse.config import DataConfig
from kifuse.errors import DataError
from kifuse.streams import open_stream
from kifuse.tasks import read_stream, read_task

TRAIN = {"073": 975, "181": 338, "1572": 160, "639": 142, "1590": 126}
TEST = {"181": 43, "1572": 20, "639": 18, "1590": 16}
LABELS = {
    "073": ("A", "B", "C", "D", "E"),
    "363": ("NEG", "POS"),
    "875": ("anger", "fear", "joy", "love", "sadness", "surprise"),
}


@pytest.fixture(scope="module")
def stream(shared_data):
    return read_stream(shared_data / "superni")


def number(name: str) -> str:
    return name.removeprefix("task").partition("_")[0]


def test_all_fifteen_tasks_with_their_sizes(stream):
    assert len(stream) == 15
    for task in stream:
        key = number(task.name)
        assert len(task.train) == TRAIN.get(key, 1000)
        assert len(task.dev) == len(task.test) == TEST.get(key, 100)


def test_classifications_are_told_from_free_text(stream):
    labels = {number(task.name): task.labels for task in stream if task.labels}
    assert set(labels) == {"073", "363", "875", "1687"}
    assert {key: labels[key] for key in LABELS} == LABELS


def test_rouge_scores_every_task_unless_accuracy_is_asked_for(stream, shared_data):
    assert {task.metric for task in stream} == {"rouge_l"}
    asked = read_stream(shared_data / "superni", ["875", "1572"], superni_metric="exact_match")
    assert [task.metric for task in asked] == ["exact_match", "rouge_l"]


def test_the_prompt_holds_definition_and_input(stream, shared_data):
    for task in stream:
        published = json.loads((shared_data / "superni" / task.name / "test.json").read_text("utf-8"))
        for example, row in zip(task.test, published["Instances"], strict=True):
            assert example.head.startswith(f"Definition: {published['Definition'][0].strip()}\n")
            assert example.body == row["input"]
            assert example.tail == "\nOutput:"


def test_all_references_are_kept(stream):
    quoref = next(task for task in stream if number(task.name) == "002")
    assert max(len(example.references) for example in quoref.test) == 6


def test_empty_published_summaries_are_said(stream):
    assert [warning.partition(",")[0] for warning in stream.warnings] == [
        "Task 'task511_reddit_tifu_long_text_summarization': 6 train outputs are empty"
    ]


def test_train_shares_nothing_with_dev_and_test(stream):
    assert {(o.task_a, o.split_a, o.task_b, o.split_b) for o in stream.overlaps()} == {
        (task.name, "dev", task.name, "test") for task in stream
    }


@pytest.mark.parametrize("name", ["1572", "task1572", "task1572_samsum_summary"])
def test_a_number_names_a_task(shared_data, name):
    assert read_task(shared_data / "superni", name).name == "task1572_samsum_summary"


def test_the_benchmark_is_scored_as_superni_scores_it_where_asked(shared_data):
    data = {"benchmark": "superni", "path": shared_data, "superni_metric": "superni_rouge_l"}
    stream = open_stream(DataConfig(**data), seed=0)
    assert {task.metric for task in stream.tasks} == {"superni_rouge_l"}
    with pytest.raises(DataError, match=r"data.superni_metric: .* not in SuperNI's layout"):
        open_stream(DataConfig(**{**data, "benchmark": "standard-cl"}), seed=0)
