"""Generated replay: lessons in writing, and what is kept of what the model wrote."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from kifuse.errors import ConfigError, RunError
from kifuse.methods.context import TaskInfo
from kifuse.methods.generated import GeneratedReplay
from kifuse.methods.sampled import Sampling
from kifuse.registry import build_method
from kifuse.running.task_texts import TaskTexts
from kifuse.tasks.task import Conversation, Example


class Said(TaskTexts):
    """A model that writes what it is told to, and answers with the first word of an input."""

    inputs: Any = ()

    def __init__(self, texts: Sequence[str], labels: tuple[str, ...] | None, inputs: Sequence[str]) -> None:
        self.task, self.labels, self.inputs = TaskInfo(0, "fruit", 0), labels, list(inputs)
        self.texts, self.prompts, self.events = list(texts), list[Any](), []

    def draw(self, rows: Sequence[Any], count: int) -> list[Any]:
        return [rows[place % len(rows)] for place in range(count)]

    def generate(self, prompts: Sequence[Any], sampling: Sampling) -> list[str]:
        self.prompts += prompts
        return [self.texts.pop(0) for _ in prompts]

    def answer(self, prompts: Sequence[Any]) -> list[str]:
        first = [(row.body.split() or [""])[0] for row in prompts]
        return [word if self.labels is None or word in self.labels else "" for word in first]

    def event(self, kind: str, **values: Any) -> None:
        self.events.append({"kind": kind, **values})


def rows(count: int = 4) -> list[Example]:
    return [Example("Which fruit?\n", f"text {n}", "\nAnswer:", ("plum",), str(n)) for n in range(count)]


def test_lessons_ask_for_the_input_under_the_task_s_name():
    given = rows(8)
    ctx = Said([], None, [])
    found = GeneratedReplay(lessons=0.5).training_examples(ctx, given)
    assert found[:8] == given and len(found) == 12
    assert found[8].input == "Write an input of the task 'fruit'.\nWhich fruit?\nInput:"
    assert [row.target for row in found[8:]] == ["text 0", "text 1", "text 2", "text 3"]


def test_chats_and_examples_without_a_text_are_no_lessons():
    chat = Conversation.of([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    given = [Example("Only a head", "", "", ("x",)), Example("", "a", "", ("b",), conversation=chat)]
    ctx = Said([], None, [])
    assert GeneratedReplay(lessons=1.0).training_examples(ctx, given) == given
    assert GeneratedReplay().remember(ctx, given, 3) == []
    assert ctx.events[0]["asked"] == ctx.events[0]["kept"] == 0


def test_what_is_empty_copied_repeated_or_without_a_label_is_dropped_and_counted():
    ctx = Said(
        ["", "  Text  0 ", "plum new", "PLUM new", "pear other", "apple other", "plum third", "plum fourth"],
        ("plum", "apple"),
        ["text 0", "text 1"],
    )
    found = GeneratedReplay(attempts=2).remember(ctx, rows(), 4)
    assert [row.body for row in found] == ["plum new", "apple other", "plum third", "plum fourth"]
    assert [(row.head, row.tail, row.references) for row in found[:2]] == [
        ("Which fruit?\n", "\nAnswer:", ("plum",)),
        ("Which fruit?\n", "\nAnswer:", ("apple",)),
    ]
    assert all(row.id is None for row in found)
    (event,) = ctx.events
    assert {key: event[key] for key in ("asked", "kept", "empty", "copies", "repeated", "no_label")} == {
        "asked": 8,
        "kept": 4,
        "empty": 1,
        "copies": 1,
        "repeated": 1,
        "no_label": 1,
    }
    assert (event["labels"], event["labels_in_all"], event["distinct_share"]) == (2, 2, 0.5)


def test_each_label_has_an_equal_place_and_others_fill_what_it_leaves():
    ctx = Said(["plum 1", "plum 2", "plum 3", "apple 4"], ("plum", "apple"), [])
    assert [row.body for row in GeneratedReplay(attempts=1).remember(ctx, rows(), 4)] == [
        "plum 1",
        "plum 2",
        "apple 4",
        "plum 3",
    ]
    free = Said(["plum 1", "plum 2"], None, [])
    assert len(GeneratedReplay(attempts=5).remember(free, rows(), 2)) == 2 and not free.texts


@pytest.mark.parametrize("settings", [{"lessons": 1.5}, {"attempts": 0}, {"top_k": 0}, {"temperature": 0.0}])
def test_settings_without_a_meaning_are_refused(settings: dict[str, float]):
    with pytest.raises(ConfigError, match=f"method.{next(iter(settings))}: found"):
        build_method("generated-replay", settings)


def test_a_callback_cannot_write_texts():
    with pytest.raises(RunError, match=r"GeneratedReplay reads and writes examples as texts.*kifuse run"):
        GeneratedReplay().callback()
