"""What is asked of a learner goes out as a task was learned, and what lacks its instruction is said once."""

from __future__ import annotations

from kifuse.tasks.questions import Questions, Way

COLOUR: Way = {"head": "Which colour?\n", "tail": "\nAnswer:", "cue_added": True}
FRUIT: Way = {"head": "Which fruit?\n", "tail": "\nAnswer:", "cue_added": True}


def asked(ways: dict[str, Way | None]) -> tuple[Questions, list[str]]:
    said: list[str] = []
    return Questions(lambda: ways, said.append), said


def test_a_text_with_the_instruction_of_any_task_is_complete():
    questions, said = asked({"colour": COLOUR, "fruit": FRUIT})
    questions.examples(["Which fruit?\nplum\nAnswer:", " Which colour?\nship\nAnswer:"], None)
    assert said == []


def test_a_text_that_lacks_the_instruction_is_said_once():
    questions, said = asked({"free": None, "colour": COLOUR, "fruit": FRUIT})
    for _ in range(2):
        questions.examples(["Which colour?\nship", "ship"], None)
    assert [line.partition(" that task")[0] for line in said] == [
        "generate(): some of these texts lack the instruction"
    ]


def test_nothing_is_said_where_no_task_has_an_instruction_or_the_task_is_named():
    questions, said = asked({"plain": {"head": ""}})
    questions.examples(["ship"], None)
    questions, told = asked({"colour": COLOUR})
    [example] = questions.examples(["ship"], "colour")
    assert example.input == "Which colour?\nship\nAnswer:"
    assert said == told == []


def test_a_chat_that_ends_with_an_answer_is_asked_without_it_and_that_is_said():
    questions, said = asked({"plain": {"head": ""}})
    chat = [{"role": "user", "content": "ship"}, {"role": "assistant", "content": "red"}]
    bare, row = questions.examples([chat[:1], {"messages": chat}], None)
    assert bare.input == row.input == "ship" and said == []  # a row of the data brings its answer
    assert questions.examples(["tree", chat], None)[1].input == "ship"
    assert said == [
        "generate(): 1 chat, first entry 2, ended with a message of the assistant, which was left out; the "
        "model answered the messages before it"
    ]
