from __future__ import annotations

import pytest

from kifuse.tasks import Overlap, read_stream

COUNTS = {
    "CB": (250, 56, 56),
    "COPA": (400, 100, 100),
    "MNLI": (1000, 300, 300),
    "RTE": (1000, 277, 277),
    "SST-2": (1000, 300, 300),
    "WiC": (1000, 300, 300),
    "agnews": (1000, 300, 300),
}


@pytest.fixture(scope="module")
def stream(shared_data):
    return read_stream(shared_data / "cl_benchmark")


def test_all_seven_tasks_with_their_sizes(stream):
    assert {task.name: (len(task.train), len(task.dev), len(task.test)) for task in stream} == COUNTS


def test_labels_are_those_of_the_file(stream):
    labels = {task.name: task.labels for task in stream}
    assert labels["agnews"] == ("World", "Sports", "Business", "Science or Technology")
    assert labels["MNLI"] == ("neutral", "entailment", "contradiction")
    assert labels["SST-2"] == ("Good", "Bad")


def test_prompts_say_what_the_long_sequence_files_say(stream, shared_data):
    finished = read_stream(shared_data / "long_sequence")
    instructions = {task.name: task.test[0].head.partition(" Option:")[0] for task in finished}
    for task in stream:
        if task.name != "COPA":
            head, option, _ = task.test[0].head.split("\n")
            assert head == instructions[task.name.lower()]
            assert option == f"Option: {', '.join(task.labels)} "


def test_copa_asks_for_itself(stream):
    copa = next(task for task in stream if task.name == "COPA")
    assert copa.test[0].input.startswith("Which sentence is the effect of")
    assert copa.test[0].input.endswith("water.\nB: Water flowed from the spout.\nAnswer:")


def test_dev_is_test_as_published_and_train_shares_nothing(stream):
    assert stream.overlaps() == [Overlap(t.name, "dev", t.name, "test", len(t.dev)) for t in stream]


def test_pairs_without_gold_label_are_said(stream):
    assert [warning.partition(" examples")[0] for warning in stream.warnings] == [
        "Task 'MNLI': 8 dev",
        "Task 'MNLI': 8 test",
    ]
