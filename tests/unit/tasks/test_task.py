from __future__ import annotations

from collections import Counter

import pytest

from kifuse.errors import DataError
from kifuse.tasks import Example, Overlap, Task, TaskStream


def example(text: str, output: str = "yes", head: str = "", tail: str = "") -> Example:
    return Example(head, text, tail, (output,))


def task(
    name: str = "t", train: int = 30, labels: tuple[str, ...] | None = ("a", "b", "c"), **splits
) -> Task:
    # Two thirds "a", the rest shared: an unbalanced task.
    outputs = ["a", "a", "a", "a", "b", "c"]
    examples = tuple(example(f"{name} text {i}", outputs[i % 6]) for i in range(train))
    return Task(name, examples, splits.get("dev", ()), splits.get("test", ()), labels, "exact_match")


def test_input_joins_the_parts_and_target_is_the_first_reference():
    item = Example("Head\n", "body", "\nAnswer:", ("first", "second"))
    assert item.input == "Head\nbody\nAnswer:"
    assert item.target == "first"


def test_content_hash_sees_content_only():
    base = Example("He", "ad", "", ("x",), "1")
    assert base.content_hash() == Example("H", "ea", "d", ("x",), "2").content_hash()
    assert base.content_hash() != Example("He", "ad", "", ("y",)).content_hash()
    # What ends where counts: no two different examples may run together.
    assert Example("", "a", "", ("b", "c")).content_hash() != Example("", "a", "", ("bc",)).content_hash()
    assert Example("", "ab", "", ("c",)).content_hash() != Example("", "a", "", ("bc",)).content_hash()


@pytest.mark.parametrize("references", ["text", (), []])
def test_references_must_be_several_texts(references):
    with pytest.raises(DataError, match="expected a tuple of at least one text"):
        Example("", "a", "", references)


def test_split_hash_sees_order_and_content():
    items = (example("a"), example("b"))
    forward = Task("t", items, (), (), None, "rouge_l")
    backward = Task("t", items[::-1], (), (), None, "rouge_l")
    assert forward.split_hash("train") != backward.split_hash("train")
    assert forward.split_hash("train") == Task("u", items, (), (), None, "rouge_l").split_hash("train")


def test_unknown_split_and_metric_name_the_nearest():
    with pytest.raises(DataError, match=r"no split 'tset'.*Did you mean 'test'"):
        task().split("tset")
    with pytest.raises(DataError, match=r"metric is 'rougel'.*Did you mean 'rouge_l'"):
        Task("t", (), (), (), None, "rougel")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["../x", "a/b", "a\\b", "..", "", " ", "a\nb", "x" * 201, None])
def test_a_name_that_could_leave_its_folder_is_refused(name):
    with pytest.raises(DataError, match="Task name"):
        Task(name, (), (), (), None, "rouge_l")


def test_a_subset_is_balanced_over_the_labels():
    small = task(train=60).subset(train=12)
    assert Counter(item.target for item in small.train) == {"a": 4, "b": 4, "c": 4}


def test_a_rare_label_is_used_up_before_the_others_fill_in():
    small = task(train=30).subset(train=24)
    assert Counter(item.target for item in small.train) == {"a": 14, "b": 5, "c": 5}


@pytest.mark.parametrize("labels", [("a", "b", "c"), None])
def test_subsets_of_one_seed_are_nested_and_in_the_order_of_the_data(labels):
    whole = task(train=40, labels=labels)
    previous: set[str] = set()
    for size in (1, 2, 3, 10, 25, 40):
        inputs = [item.input for item in whole.subset(train=size).train]
        assert len(inputs) == size
        assert previous <= set(inputs)
        assert inputs == [item.input for item in whole.train if item.input in set(inputs)]
        previous = set(inputs)


def test_a_subset_depends_on_seed_and_repeats():
    whole = task(train=60)
    assert whole.subset(train=10, seed=1) == whole.subset(train=10, seed=1)
    assert whole.subset(train=10, seed=1) != whole.subset(train=10, seed=2)


def test_a_subset_leaves_the_other_splits_and_may_ask_for_more_than_there_is():
    whole = task(train=6, dev=(example("d"),), test=(example("e"), example("f")))
    same = whole.subset(train=100, test=1, dev=0)
    assert same.train == whole.train
    assert (len(same.dev), len(same.test)) == (0, 1)


@pytest.mark.parametrize("sizes", [{"train": 0}, {"test": -1}])
def test_a_subset_of_impossible_size_is_refused(sizes):
    with pytest.raises(DataError, match="expected at least"):
        task().subset(**sizes)


def test_a_stream_iterates_and_refuses_to_hold_a_task_twice():
    stream = TaskStream("s", (task("one"), task("two")))
    assert [item.name for item in stream] == ["one", "two"]
    assert len(stream) == 2
    with pytest.raises(DataError, match="holds task 'one' twice"):
        TaskStream("s", (task("one"), task("one")))
    with pytest.raises(DataError, match="holds no task"):
        TaskStream("s", ())


def test_overlaps_count_distinct_shared_inputs_over_splits_and_tasks():
    a, b, c = example("a"), example("b"), example("c")
    a_other_output = example("a", "no")
    one = Task("one", (a, b), (a_other_output, a_other_output), (c,), None, "rouge_l")
    two = Task("two", (c,), (), (b,), None, "rouge_l")
    assert TaskStream("s", (one, two)).overlaps() == [
        Overlap("one", "train", "one", "dev", 1),
        Overlap("one", "train", "two", "test", 1),
        Overlap("one", "test", "two", "train", 1),
    ]


def test_repeats_inside_one_split_are_no_overlap():
    a = example("a")
    assert TaskStream("s", (Task("one", (a, a), (), (), None, "rouge_l"),)).overlaps() == []
