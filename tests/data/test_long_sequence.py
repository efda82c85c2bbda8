from __future__ import annotations

import json
from collections import Counter

import pytest

from kifuse.tasks import Encoder, Overlap, read_stream
from kifuse.tasks.data_findings import look_through

COUNTS = {"cb": (250, 56, 56), "copa": (400, 100, 100), "rte": (1000, 277, 277), "yahoo": (1000, 100, 400)}
LABELS = {
    "agnews": "World, Sports, Business, Science or Technology",
    "amazon": "very negative, negative, neutral, positive, very positive",
    "boolqa": "True, False",
    "cb": "entailment, contradiction, neutral",
    "copa": "A, B",
    "imdb": "Good, Bad",
    "mnli": "neutral, entailment, contradiction",
    "multirc": "False, True",
    "qqp": "False, True",
    "rte": "contradiction, entailment",
    "sst-2": "Good, Bad",
    "wic": "True, False",
    "yelp": "very negative, negative, neutral, positive, very positive",
}
DEV_IN_TEST = {
    "agnews": 41,
    "amazon": 29,
    "boolqa": 91,
    "cb": 56,
    "copa": 100,
    "dbpedia": 30,
    "imdb": 29,
    "mnli": 32,
    "multirc": 56,
    "qqp": 31,
    "rte": 277,
    "sst-2": 286,
    "wic": 394,
    "yelp": 29,
}


@pytest.fixture(scope="module")
def stream(shared_data):
    return read_stream(shared_data / "long_sequence")


def test_all_fifteen_tasks_with_their_sizes(stream):
    sizes = {task.name: (len(task.train), len(task.dev), len(task.test)) for task in stream}
    assert len(sizes) == 15
    assert sizes == {name: COUNTS.get(name, (1000, 500, 500)) for name in sizes}


def test_labels_are_the_options_of_the_prompts(stream):
    labels = {task.name: task.labels for task in stream}
    for name, expected in LABELS.items():
        assert labels[name] == tuple(expected.split(", "))
    assert len(labels["dbpedia"]) == 14
    assert len(labels["yahoo"]) == 10
    assert {task.metric for task in stream} == {"exact_match"}


def test_the_parts_join_to_the_published_input(stream, shared_data):
    for task in stream:
        for split in ("train", "dev", "test"):
            rows = json.loads(
                (shared_data / "long_sequence" / split / f"{task.name}.json").read_text("utf-8")
            )
            assert [example.input for example in task.split(split)] == [row["input"] for row in rows]
            assert [example.references for example in task.split(split)] == [(row["output"],) for row in rows]
            assert [example.id for example in task.split(split)] == [row["id"] for row in rows]


def test_every_head_holds_the_options_and_every_tail_the_cue(stream):
    for task in stream:
        examples = [*task.train, *task.dev, *task.test]
        assert len({example.head for example in examples}) == 1
        assert examples[0].head.endswith(f"Option: {', '.join(task.labels)}.\n")
        assert {example.tail for example in examples} == {"\nAnswer:"}


def test_overlaps_are_found_exactly_as_published(stream):
    assert stream.overlaps() == [
        Overlap(task.name, "dev", task.name, "test", DEV_IN_TEST[task.name])
        for task in stream
        if task.name in DEV_IN_TEST
    ]


def test_what_is_said_of_the_published_splits_is_exactly_what_is_published(stream):
    found = look_through(stream.tasks)
    assert [each.also_trained for each in found.tasks] == [0] * 15
    assert [each.contradictions for each in found.tasks] == [0] * 15
    assert found.notes(most=None) == [
        "Examples that repeat another one of their split (same input, same answers): rte/train 1 of 1,000.",
        "Inputs that are in two splits: "
        + ", ".join(f"{t.name}/dev and test {DEV_IN_TEST[t.name]}" for t in stream if t.name in DEV_IN_TEST)
        + ".",
    ]


def test_the_instruction_of_copa_is_the_odd_one_published(stream):
    copa = next(task for task in stream if task.name == "copa")
    assert copa.test[0].head == (
        "According to the following passage, is the question true or false? Choose one from the option. "
        "Option: A, B.\n"
    )


def test_pairs_without_gold_label_are_kept_and_said(stream):
    mnli = next(task for task in stream if task.name == "mnli")
    assert Counter(example.target for example in mnli.dev)["-"] == 6
    assert "-" not in mnli.labels
    assert stream.warnings == (
        "Task 'mnli': 6 dev examples have the output '-' (no gold label), kept as published.",
    )


def test_long_texts_keep_instruction_and_cue_when_cut(stream, tiny_tokenizer):
    imdb = next(task for task in stream if task.name == "imdb")
    encoder = Encoder(tiny_tokenizer, encoder_decoder=False, max_input=400)
    encoded = encoder.encode_many(imdb.test)
    assert sum(item.cut for item in encoded) > 250
    for example, item in zip(imdb.test, encoded, strict=True):
        text = tiny_tokenizer.decode(item.input_ids)
        assert len(item.input_ids) <= 400
        assert text.startswith(example.head + example.body[:40])
        assert text.endswith(example.body[-40:] + "\nAnswer:")
        assert item.cut or text == example.input
