"""Nothing of dev or test is kept or trained on, even where the published splits overlap."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kifuse.errors import RunError
from kifuse.tasks import Example, MemoryBuffer, Task
from kifuse.tasks.leaks import check_memory, check_training

# Few contents and ids, so that splits overlap all the time.
EXAMPLES = st.builds(
    lambda text, known: Example("h ", text, "", ("yes",), known),
    st.sampled_from("abc"),
    st.sampled_from([None, "1", "2"]),
)
SPLIT = st.lists(EXAMPLES, min_size=1, max_size=6).map(tuple)


def task(name: str, train: tuple[Example, ...], dev=(), test=()) -> Task:
    return Task(name, train, tuple(dev), tuple(test), None, "rouge_l")


def example(text: str, known: str | None = None) -> Example:
    return Example("", text, "", ("yes",), known)


@given(
    SPLIT, SPLIT, SPLIT, st.integers(0, 99), st.sampled_from([0.02, 0.5, 1.0]), st.none() | st.integers(1, 7)
)
def test_what_the_buffer_draws_by_itself_always_passes(train, dev, test, seed, share, per_task):
    tasks = [task("one", train, dev, test), task("two", test, train, dev)]
    memory = MemoryBuffer(share=share, per_task=per_task, seed=seed)
    for each in tasks:
        memory.add(each)
        check_memory(memory, tasks)
        check_training(each.train, [each])
    check_training([*train, *test], tasks)
    again = MemoryBuffer.from_state(memory.state())
    check_memory(again, tasks)


@given(SPLIT, SPLIT, st.data())
def test_an_example_of_another_split_never_passes(train, test, data):
    stray = data.draw(st.sampled_from(test))
    # what equals a training example in content and id is a training example, wherever else it stands
    assume(stray not in train)
    one = task("one", train, test=test)
    place = data.draw(st.integers(0, len(train)))
    with pytest.raises(RunError, match="the test split of task 'one'"):
        check_training([*train[:place], stray, *train[place:]], [one])
    memory = held([stray], len(train))
    with pytest.raises(RunError, match="the test split of task 'one'"):
        check_memory(memory, [one])


def held(examples: list[Example], per_task: int) -> MemoryBuffer:
    """A buffer that holds just these, as a damaged file could."""
    memory = MemoryBuffer(per_task=per_task)
    memory.add(task("one", tuple(examples)))
    return memory


@given(SPLIT, st.data())
def test_an_example_comes_no_more_often_than_it_stands_in_train(train, data):
    twice = data.draw(st.sampled_from(train))
    with pytest.raises(RunError, match="not as often"):
        check_training([*train, twice], [task("one", train)])


def test_overlapping_splits_are_no_leak_but_the_twin_with_another_id_is():
    one = task("one", (example("shared", "train-1"),), test=(example("shared", "test-1"),))
    check_training(one.train, [one])
    with pytest.raises(RunError, match=r"'test-1'.* the test split of task 'one'"):
        check_training(one.test, [one])
    without_ids = task("one", (example("shared"),), test=(example("shared"),))
    check_training(without_ids.test, [without_ids])


def test_the_place_of_a_stray_example_is_told_across_tasks():
    one, two = task("one", (example("a"),)), task("two", (example("b"),), dev=(example("c"),))
    with pytest.raises(RunError, match=r"train split of 'one'.*the dev split of task 'two'"):
        check_training([example("c")], [one], [two])
    with pytest.raises(RunError, match="no split holds it"):
        check_training([example("d")], [one], [two])
    check_training([example("a"), example("b")], [one, two])


def test_training_data_of_another_task_is_none_of_this_one():
    one, two = task("one", (example("a"),)), task("two", (example("b"),))
    with pytest.raises(RunError):
        check_memory(held([example("b")], 1), [one, two])


def test_the_buffer_holds_at_most_its_share():
    train = tuple(example(str(n)) for n in range(100))
    full = MemoryBuffer(share=0.05)
    full.add(task("one", train))
    full.share = 0.04
    with pytest.raises(
        RunError, match="holds 5 examples of task 'one', more than the 4 that it may keep of 100"
    ):
        check_memory(full, [task("one", train)])


def test_a_task_that_is_none_of_the_runs_is_refused_unless_its_data_are_gone():
    memory = held([example("a")], 1)
    with pytest.raises(RunError, match="holds the task 'one'"):
        check_memory(memory, [task("two", (example("a"),))])
    check_memory(memory, [task("two", (example("a"),))], gone={"one"})
