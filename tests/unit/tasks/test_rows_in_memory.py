"""Rows in memory and data sets of the hub become tasks, whatever holds them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, IterableDataset
from hypothesis import given, settings
from hypothesis import strategies as st

from kifuse.config import DataConfig
from kifuse.errors import DataError
from kifuse.streams import open_stream
from kifuse.tasks.any_task import as_task
from kifuse.tasks.sampling import visiting_order

ROWS = [{"input": f"Where is {i}?", "output": "here"} for i in range(12)]


def _generated() -> Any:
    yield from ROWS


HOLDERS: dict[str, Any] = {
    "list": lambda: ROWS,
    "generator": _generated,
    "Dataset": lambda: Dataset.from_list(ROWS),
    "shuffled Dataset": lambda: Dataset.from_list(ROWS[::-1]).select(range(11, -1, -1)),
    "formatted Dataset": lambda: Dataset.from_list(ROWS).with_format("numpy"),
    "IterableDataset": lambda: Dataset.from_list(ROWS).to_iterable_dataset(),
    "IterableDataset of a generator": lambda: IterableDataset.from_generator(_generated),
    "DataFrame": lambda: pd.DataFrame(ROWS),
    "Arrow table": lambda: Dataset.from_list(ROWS).data.table,
    "columns": lambda: {"input": [r["input"] for r in ROWS], "output": [r["output"] for r in ROWS]},
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_whatever_holds_rows_is_taken(holder: str):
    task = as_task(HOLDERS[holder](), name="t", to_learn=False)
    assert [(e.input, e.target) for e in task.train] == [(row["input"], row["output"]) for row in ROWS]
    assert task.passed_over == ()


def test_splits_have_many_names_and_the_unused_are_named():
    data = Dataset.from_list(ROWS)
    found = as_task(DatasetDict(train_sft=data, validation=data, test_sft=data, train_gen=data), name="t")
    assert (len(found.train), len(found.dev), len(found.test)) == (12, 12, 12)
    assert found.passed_over == ("the split 'train_gen' (12 rows) was not read. Did you mean 'train'?",)
    with pytest.raises(DataError, match="the splits 'validation' and 'dev' are both dev"):
        as_task({"train": ROWS, "validation": ROWS, "dev": ROWS}, name="t")
    with pytest.raises(
        DataError, match=r"found a split 'trian', expected one of train.*Did you mean 'train'"
    ):
        as_task({"trian": ROWS}, name="t")


def test_gaps_of_a_data_frame_are_none():
    frame = pd.DataFrame(
        [{"input": "a", "output": "b", "instruction": "Say."}, {"input": "c", "output": "d"}]
    )
    assert [e.head for e in as_task(frame, name="t", to_learn=False).train] == ["Say.\n", ""]


def labelled(numbers: list[int]) -> Dataset:
    rows = [{"text": f"t{i}", "label": number} for i, number in enumerate(numbers)]
    return Dataset.from_list(rows).cast_column("label", ClassLabel(names=["neg", "pos"]))


def test_class_labels_have_names_in_memory_and_in_files(tmp_path: Path):
    data = labelled([0, 1, 1])
    data.to_parquet(tmp_path / "t.parquet")
    data.save_to_disk(tmp_path / "saved")
    renamed = data.rename_columns({"text": "input", "label": "output"})
    for source in (data, renamed, tmp_path / "t.parquet", tmp_path / "saved"):
        task = as_task(source, name="t", to_learn=False)
        assert [example.target for example in task.train] == ["neg", "pos", "pos"]
        assert (task.labels, task.metric) == (("neg", "pos"), "exact_match")


def test_a_split_without_labels_is_named_and_a_row_without_is_refused():
    task = as_task({"train": labelled([0, 1]), "validation": labelled([1]), "test": labelled([-1])}, name="t")
    assert task.passed_over[0] == "the split test was not read, as none of its rows has a value in 'label'."
    with pytest.raises(DataError, match="row 2: 'label' is null, or -1, which means no label"):
        as_task(labelled([0, -1]), name="t")


def test_label_numbers_of_a_column_with_gaps_are_known_though_pandas_makes_them_fractions():
    frame = pd.DataFrame([{"text": "a", "label": 1}, {"text": "b", "label": None}])
    task = as_task(frame[:1], name="t", labels=["no", "yes"], to_learn=False)
    assert task.train[0].target == "yes"
    with pytest.raises(DataError, match="train row 2: 'label' is null"):
        as_task(frame, name="t", labels=["no", "yes"])


def test_nulls_that_datasets_fills_in_are_left_out():
    calls = [{"function": {"name": "f", "arguments": {"x": 1}}}]
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": calls}]
    other = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "name": "k"}]
    task = as_task(Dataset.from_list([{"messages": turns}, {"messages": other}]), name="t", to_learn=False)
    chats = [example.conversation for example in task.train]
    assert chats[0] is not None and chats[0].messages == [turns[0], {**turns[1], "content": ""}]
    assert chats[1] is not None and chats[1].messages == other


def test_a_value_that_is_nested_without_end_is_refused():
    deep: list[Any] = []
    for _ in range(99):
        deep = [deep]
    assert as_task([{**ROWS[0], "note": deep}], name="t", to_learn=False).passed_over
    for _ in range(2000):
        deep = [deep]
    with pytest.raises(DataError, match="train row 1: the field 'note' is nested too deeply, more than 100"):
        as_task([{**ROWS[0], "note": deep}], name="t")
    circle: dict[str, Any] = {}
    circle["again"] = circle
    with pytest.raises(DataError, match="the field 'note' is nested too deeply"):
        as_task([{**ROWS[0], "note": circle}], name="t")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "holds no rows"),
        ({}, "holds no split"),
        (Dataset.from_list([]), "holds no rows"),
        (5, "found int, expected a Task, a path"),
        (["a"], "train row 1: found text, expected a row with fields"),
        ({"unsup": [{"text": "a"}]}, r"a split 'unsup', .* or give its rows alone: data\['unsup'\]"),
        ({"input": ["a"], "output": ["b", "c"]}, "the columns differ in length: input 1, output 2"),
    ],
)
def test_what_holds_no_rows_is_refused(data: Any, message: str):
    with pytest.raises(DataError, match=message):
        as_task(data, name="t")


def test_test_rows_are_taken_once():
    assert len(as_task(ROWS, name="t", test=Dataset.from_list(ROWS[:3])).test) == 3
    with pytest.raises(DataError, match=r"has its own test rows\. Leave out test="):
        as_task({"train": ROWS, "test": ROWS}, name="t", test=ROWS)
    with pytest.raises(DataError, match="t, test row 1: the field 'output' is missing"):
        as_task(ROWS, name="t", test=[{"input": "a"}])


# The hub, from a local folder, as load_dataset takes one


def test_a_data_set_of_the_hub_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for split in ("train", "test"):
        path = tmp_path / "someone" / "desk" / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps({"q": r["input"], "a": r["output"]}) + "\n" for r in ROWS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    columns = {"input": "q", "output": "a"}
    task = as_task("hub:someone/desk", columns=columns)
    assert (task.name, len(task.train), len(task.test)) == ("desk", 12, 12)
    assert task.format == "input_output in someone/desk"
    data = DataConfig.model_validate({"path": "hub:someone/desk", "columns": columns})
    assert open_stream(data, seed=0).tasks[0].train == task.train


def test_a_data_set_that_cannot_be_loaded_is_refused_with_a_way(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def unreachable(*names: Any) -> None:
        asked.append(names)
        raise ConnectionError("no network")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    for name, names in (
        ("someone/desk", ("someone/desk", None)),
        ("hub:someone/desk:small", ("someone/desk", "small")),
    ):
        with pytest.raises(DataError, match="ConnectionError: no network Give the path of a file or folder"):
            as_task(name)
        assert asked.pop() == names
    with pytest.raises(DataError, match="no such file or folder"):
        as_task("someone/desk.jsonl")
    assert not asked


@given(st.lists(st.integers(0, 12), min_size=1, max_size=60), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_examples_that_ask_the_same_are_all_trained_or_all_tested(numbers: list[int], seed: int):
    rows = [{"input": f"q{n}", "output": "even" if i % 2 else "odd"} for i, n in enumerate(numbers)]
    found = as_task(rows, name="t", seed=seed)
    assert as_task(rows, name="t", seed=seed) == found
    trained, tested = ({example.input for example in split} for split in (found.train, found.test))
    assert not trained & tested
    whole = as_task(rows, name="t", to_learn=False).train
    assert sorted((*found.train, *found.test), key=repr) == sorted(whole, key=repr)
    assert len(found.train) >= len(found.test)
    least = min(numbers.count(number) for number in numbers)
    assert bool(found.test) == (2 * least <= len(numbers))


def test_the_test_set_is_drawn_as_ever_where_all_ask_something_else():
    rows = [{"input": f"q{n}", "output": "ab"[n % 2]} for n in range(40)]
    whole = as_task(rows, name="t", labels=["a", "b"], to_learn=False)
    found = as_task(rows, name="t", labels=["a", "b"], seed=3)
    drawn = visiting_order(whole.train, whole.labels, (3, "t", "held out"))[:4]
    assert found.test == tuple(whole.train[place] for place in sorted(drawn))
    assert found.warnings == ("Task 't': 4 training examples were set aside as its test set.",)


def test_what_is_set_aside_of_repeated_rows_is_said():
    rows = [{"input": f"q{n % 5}", "output": "x"} for n in range(20)]
    found = as_task(rows, name="t")
    assert (len(found.train), len(found.test), len({e.input for e in found.test})) == (16, 4, 1)
    assert found.warnings == (
        "Task 't': 4 training examples were set aside as its test set; "
        "examples that ask the same stayed together.",
    )
    same = as_task([{"input": "q", "output": "x"}] * 20, name="t")
    assert (len(same.train), same.test) == (20, ())
    assert (
        "no test set was set aside, as its training examples (20) ask too few different things"
        in same.warnings[0]
    )
