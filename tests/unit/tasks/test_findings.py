"""What is found in tasks before they are trained on."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from kifuse.tasks import Conversation, Encoder, Example, Overlap, Task
from kifuse.tasks.data_findings import Contradiction, holding, look_through


def example(text: str, *answers: str) -> Example:
    return Example("", text, "", answers or ("yes",))


def task(
    name: str, train: list[Example], test: list[Example] | None = None, dev: list[Example] | None = None
):
    return Task(name, tuple(train), tuple(dev or []), tuple(test or []), None, "rouge_l")


def test_examples_that_stand_twice_are_counted_in_each_split():
    rows = [example("q0"), example("q1")] * 50
    found = look_through([task("dup", rows[:90], rows[90:])])
    assert found.tasks[0].repeated == {"train": 88, "test": 8}
    assert found.notes()[0] == (
        "Examples that repeat another one of their split (same input, same answers): "
        "dup/train 88 of 90, dup/test 8 of 10."
    )


def test_answers_contradict_each_other_only_where_none_is_accepted_by_both():
    rows = [
        example("a", "x"),
        example("a", "y"),
        example("a", "z"),
        example("b", "x", "y"),
        example("b", "y"),
    ]
    found = look_through([task("t", rows, [example("c")])])
    assert found.tasks[0].contradictions == 1
    assert found.tasks[0].contradiction == Contradiction("a", ("x", "y"))
    assert found.notes() == ["Training inputs whose answers contradict each other: t 1."]


def test_test_examples_that_are_also_trained_on_are_counted_wherever_they_are_trained():
    here = task("here", [example("a"), example("b")], [example("a"), example("a", "no"), example("c")])
    there = task("there", [example("c")], [example("d")])
    found = look_through([here, there])
    assert [each.also_trained for each in found.tasks] == [3, 0]
    assert found.notes() == [
        "Test examples whose input is also trained on: here 3 of 3 (in here/train, there/train)."
    ]


def test_tasks_learned_before_are_held_against_the_new_one_by_hashes_alone():
    old = task("old", [example("a")], [example("b")], [example("e")])
    new = task("new", [example("b")], [example("a"), example("x")], [example("e")])
    found = look_through([new], earlier={"old": old.input_hashes()})
    assert Overlap("old", "test", "new", "train", 1) in found.overlaps
    assert found.notes() == [
        "Test examples whose input is also trained on: "
        "old 1 input (in new/train), new 1 of 2 (in old/train).",
        "Inputs that are in two splits: old/dev and new/dev 1.",
    ]


def test_what_was_found_between_earlier_tasks_is_not_said_again():
    old = task("old", [example("a")], [example("a")], [example("a")])
    found = look_through([task("new", [example("b")], [example("c")])], earlier={"old": old.input_hashes()})
    assert len(found.overlaps) == 3 and found.notes() == []


def test_texts_to_continue_are_known_by_themselves_as_they_have_no_input():
    rows = [Example("", "", "", (text,)) for text in ("one", "two", "two")]
    found = look_through([task("t", rows, [Example("", "", "", ("three",))])])
    assert found.tasks[0].repeated == {"train": 1}
    assert (found.tasks[0].contradictions, found.tasks[0].also_trained) == (0, 0)


def test_chats_with_other_tools_ask_something_else():
    def chat(tool: str) -> Example:
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": tool}]
        return Example("", "a", "", (tool,), conversation=Conversation.of(messages, [{"name": tool}]))

    found = look_through([task("t", [chat("x"), chat("y")], [chat("z")])])
    assert (found.tasks[0].contradictions, found.tasks[0].also_trained, found.overlaps) == (0, 0, ())


@pytest.mark.parametrize("portions", [False, True])
def test_what_is_too_long_is_counted_with_the_limit_that_would_hold_it(tiny_tokenizer, portions):
    encoder = Encoder(tiny_tokenizer, encoder_decoder=False, max_input=20, max_target=10)
    rows = [example("short"), example("a long text " * 20), example("b", "an answer " * 40)]
    seen: list[int] = []
    found = look_through([task("t", rows, rows[1:])], encoder, done=seen.append if portions else None)
    needed = [len(tiny_tokenizer(t)["input_ids"]) for t in (rows[1].input, " " + rows[2].target)]
    lengths = found.tasks[0].lengths
    assert lengths is not None and lengths.longest_input == needed[0]
    assert abs(lengths.longest_target - (needed[1] + 1)) <= 1
    assert (lengths.cut_inputs, lengths.cut_test_inputs) == (1, 1)
    assert (lengths.cut_answers, lengths.cut_test_answers) == (1, 1)
    assert found.input_advice() == (
        "Inputs longer than data.max_input (20 tokens) lose their middle: t/train 1 of 3, t/test 1 of 2; "
        f"data.max_input: {holding(needed[0])} would hold all."
    )
    assert f"data.max_target: {holding(lengths.longest_target)} would hold all" in found.target_advice()
    assert sum(seen) == (5 if portions else 0)
    wide = Encoder(
        tiny_tokenizer,
        encoder_decoder=False,
        max_input=holding(lengths.longest_input),
        max_target=holding(lengths.longest_target),
    )
    assert look_through([task("t", rows, rows[1:])], wide).notes() == found.notes()[:-2]


def test_answers_that_cannot_be_generated_whole_are_said(tiny_tokenizer):
    encoder = Encoder(tiny_tokenizer, encoder_decoder=False, max_target=128)
    tasks = [task("t", [example("a", "an answer " * 5)], [example("b")])]
    longest = look_through(tasks, encoder).tasks[0].lengths.longest_target
    assert look_through(tasks, encoder, max_new_tokens=longest).notes() == []
    assert look_through(tasks, encoder, max_new_tokens=4).notes() == [
        "The longest answers are cut when they are generated, as evaluation.max_new_tokens is 4: "
        f"t {longest} tokens; null generates as many as data.max_target."
    ]


def test_a_text_to_continue_is_parted_and_never_too_long(tiny_tokenizer):
    encoder = Encoder(tiny_tokenizer, encoder_decoder=False, max_input=8, max_target=8)
    one = Example("", "", "", ("a long text " * 40,))
    found = look_through([task("t", [one], [Example("", "", "", ("more",))])], encoder)
    assert found.notes() == [] and found.tasks[0].rendered is not None
    assert found.tasks[0].rendered.cut  # its first piece is shown


def test_a_long_list_of_places_is_cut_short_and_counted():
    found = look_through([task(f"t{i}", [example(f"a{i}")] * 2, [example(f"b{i}")]) for i in range(12)])
    assert found.notes()[0].endswith("t7/train 1 of 2 and 4 more.")


def test_an_example_is_shown_as_the_very_tokens_that_are_trained(tiny_tokenizer):
    encoder = Encoder(tiny_tokenizer, encoder_decoder=False, max_input=60, chat_template=True)
    one = Example("Which?\n", "\x1b[31m a\tb 😀 東京", "\nAnswer:", ("blue",))
    rendered = look_through([task("t", [one], [one])], encoder).tasks[0].rendered
    assert rendered is not None and not rendered.plain
    encoded = encoder.encode(one)
    whole = "".join(piece.text for piece in (*rendered.prompt, *rendered.target))
    assert whole == tiny_tokenizer.decode(encoded.input_ids + encoded.target_ids)
    assert next(piece.text for piece in rendered.prompt if piece.special) == "<|turn|>"
    assert rendered.target[0].text == "blue" and rendered.target[-1].special
    assert json.loads(json.dumps(rendered.state()))["target"][-1] == [rendered.target[-1].text, True]


def test_a_space_that_a_tokenizer_drops_at_the_start_of_a_text_is_shown():
    from tests.tiny import build_tokenizer

    encoder = Encoder(build_tokenizer("pieces"), encoder_decoder=False)
    rendered = look_through([task("t", [example("Is it?", "true")])], encoder).tasks[0].rendered
    assert rendered is not None
    assert "".join(piece.text for piece in (*rendered.prompt, *rendered.target)) == "Is it? true</s>"


def test_without_a_tokenizer_the_texts_are_shown_as_they_are():
    found = look_through([task("t", [example("a", "b")])]).tasks[0]
    assert found.lengths is None and found.rendered is not None and found.rendered.plain
    assert found.rendered.state() == {"prompt": [["a", False]], "target": [["b", False]], "cut": False}
    assert "longest_input" not in found.facts()


def test_characters_that_the_tokenizer_has_no_token_for_are_counted_and_said():
    core = Tokenizer(WordLevel({"<unk>": 0, "</s>": 1, "Where?": 2, "there": 3}, unk_token="<unk>"))  # noqa: S106
    core.pre_tokenizer = WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    names = {"unk_token": "<unk>", "eos_token": "</s>"}
    encoder = Encoder(PreTrainedTokenizerFast(tokenizer_object=core, **names), encoder_decoder=False)
    rows = [example("Where?", "there"), example("Where?", "→"), example("<unk>", "there")]
    found = look_through([task("way", rows, [example("Wo?", "there")])], encoder)
    assert found.tasks[0].facts()["unknown"] == 2
    assert found.notes()[-1] == (
        "Examples with characters that the tokenizer replaces, as it has no token for them: way 2 of 4."
    )
