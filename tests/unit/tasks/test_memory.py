from __future__ import annotations

import json
from collections import Counter

import pytest

from kifuse.errors import DataError
from kifuse.tasks import Example, MemoryBuffer, Task


def task(name: str = "t", size: int = 100, labels: tuple[str, ...] | None = ("a", "b")) -> Task:
    train = tuple(
        Example("h\n", f"{name} {i} ü", "\nAnswer:", ("a" if i % 4 else "b",), str(i)) for i in range(size)
    )
    return Task(name, train, (), (), labels, "exact_match")


@pytest.mark.parametrize(
    ("size", "share", "kept"),
    [(1000, 0.02, 20), (99, 0.02, 1), (3, 0.02, 1), (100, 0.29, 29), (100, 0.07, 7), (5, 1, 5)],
)
def test_a_share_is_rounded_down_but_at_least_one(size, share, kept):
    memory = MemoryBuffer(share=share)
    memory.add(task(size=size))
    assert len(memory) == kept


@pytest.mark.parametrize(("per_task", "kept"), [(1, 1), (7, 7), (500, 100)])
def test_a_number_per_task_replaces_the_share(per_task, kept):
    memory = MemoryBuffer(per_task=per_task)
    memory.add(task())
    assert len(memory) == kept


def test_balanced_selection_keeps_every_label():
    memory = MemoryBuffer(per_task=10)
    memory.add(task())
    assert Counter(item.target for item in memory.examples()) == {"a": 5, "b": 5}


def test_random_selection_ignores_labels():
    memory = MemoryBuffer(per_task=40, selection="random")
    memory.add(task(size=400))
    assert Counter(item.target for item in memory.examples())["a"] > 20


def test_a_draw_depends_on_seed_name_and_data_not_on_other_tasks():
    alone, after = MemoryBuffer(seed=3), MemoryBuffer(seed=3)
    after.add(task("first"))
    for memory in (alone, after):
        memory.add(task("second"))
    assert alone.examples("second") == after.examples("second")
    other = MemoryBuffer(seed=4)
    other.add(task("second"))
    assert other.examples("second") != alone.examples("second")


def test_tasks_keep_their_order_and_examples_are_of_the_training_data():
    memory = MemoryBuffer(per_task=2)
    for name in ("z", "a"):
        memory.add(task(name))
    assert memory.tasks == ["z", "a"]
    assert memory.examples() == [*memory.examples("z"), *memory.examples("a")]
    assert set(memory.examples("a")) <= set(task("a").train)


def test_state_survives_json():
    memory = MemoryBuffer(share=0.1, selection="random", seed=9)
    memory.add(task("one", labels=None))
    memory.add(task("two"))
    back = MemoryBuffer.from_state(json.loads(json.dumps(memory.state())))
    assert back.tasks == memory.tasks
    assert back.examples() == memory.examples()
    for buffer in (back, memory):
        buffer.add(task("three"))
    assert back.state() == memory.state()


def test_mistakes_are_named():
    memory = MemoryBuffer()
    memory.add(task("agnews"))
    with pytest.raises(DataError, match="'agnews' is in the memory buffer already"):
        memory.add(task("agnews"))
    with pytest.raises(DataError, match=r"holds: agnews. Did you mean 'agnews'"):
        memory.examples("agnewz")
    with pytest.raises(DataError, match="no training examples"):
        memory.add(task("empty", size=0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 0}, "memory.share is 0"),
        ({"share": 1.5}, "memory.share is 1.5"),
        ({"per_task": 0}, "memory.per_task is 0"),
        ({"selection": "balansed"}, "Did you mean 'balanced'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(DataError, match=message):
        MemoryBuffer(**settings)


@pytest.mark.parametrize(
    "state",
    [{}, {"version": 2}, {"version": 1, "share": 0.1}, {**MemoryBuffer().state(), "tasks": [{"name": "x"}]}],
)
def test_a_damaged_state_is_refused(state):
    with pytest.raises(DataError, match="state of the memory buffer"):
        MemoryBuffer.from_state(state)
