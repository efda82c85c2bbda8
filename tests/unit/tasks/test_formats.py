"""Formats of rows: each is told from its fields, makes the right example, and names what it leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kifuse.errors import DataError
from kifuse.tasks import Task
from kifuse.tasks.any_task import as_task
from kifuse.tasks.readers import read_stream
from kifuse.tasks.readers.formats import FORMATS

TOOLS = [{"type": "function", "function": {"name": "track", "parameters": {"type": "object"}}}]
CALL = {"id": "1", "type": "function", "function": {"name": "track", "arguments": {"parcel": 7}}}
GUIDE = Path(__file__).parents[3] / "docs" / "your-own-data.md"


def one(row: dict[str, Any], **options: Any) -> Task:
    """The task of one row."""
    return as_task([row], name="t", **options)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


ROWS: dict[str, tuple[dict[str, Any], str, str]] = {
    "input_output": ({"input": "Where?", "output": "here"}, "Where?", "here"),
    "prompt_completion": ({"prompt": "Where?", "completion": "here"}, "Where?", "here"),
    "alpaca": (
        {"instruction": "Say it.", "input": "Where?", "output": "here"},
        "Say it.\nWhere?\nAnswer:",
        "here",
    ),
    "question_answer": ({"question": "Where?", "answer": "here"}, "Where?", "here"),
    "text_label": ({"sentence": "Where?", "label": "question"}, "Where?", "question"),
    "messages": ({"messages": [user("Where?"), assistant("here")]}, "Where?", "here"),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": "here"}]},
        "Where?",
        "here",
    ),
    "text": ({"text": "A text."}, "", "A text."),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_format_is_told_from_the_fields(name: str):
    row, asked, answer = ROWS[name]
    task = one(row)
    assert task.format == name
    assert (task.train[0].input, task.train[0].references) == (asked, (answer,))
    assert task.passed_over == ()
    assert one(row, format=name).train == task.train


def test_every_format_is_tried_here_and_stands_in_the_guide():
    assert set(ROWS) == {format.name for format in FORMATS}
    table = [line for line in GUIDE.read_text("utf-8").splitlines() if line.startswith("| `")]
    for format in FORMATS:
        line = next(line for line in table if line.startswith(f"| `{format.name}` |"))
        for field in format.fields:
            assert f"`{field}`" in line, f"{format.name} reads {field}"


@pytest.mark.parametrize(
    ("row", "asked", "references"),
    [
        ({"prompt": "Where?", "answer": "here"}, "Where?", ("here",)),
        ({"question": "Who?", "context": "A text.", "answers": ["a", "b"]}, "A text.\n\nWho?", ("a", "b")),
        ({"question": "Who?", "answers": {"text": ["a", "a"], "answer_start": [1, 1]}}, "Who?", ("a",)),
        ({"text": "Fine.", "label": "good"}, "Fine.", ("good",)),
        ({"instruction": "Greet.", "output": "Hi."}, "Greet.\nAnswer:", ("Hi.",)),
        (
            {"instruction": "Sum up.", "context": "A text.", "response": "A."},
            "Sum up.\nA text.\nAnswer:",
            ("A.",),
        ),
        ({"query": "Where?", "response": "here"}, "Where?", ("here",)),
        ({"question": "Where?", "answer": "here", "instruction": "Say."}, "Say.\nWhere?\nAnswer:", ("here",)),
    ],
)
def test_the_same_under_other_names(row: dict[str, Any], asked: str, references: tuple[str, ...]):
    example = one(row).train[0]
    assert (example.input, example.references) == (asked, references)


# Chats


def test_a_chat_goes_to_the_template_as_it_stands():
    system = {"role": "system", "content": "Be brief."}
    call = {"role": "assistant", "tool_calls": [CALL], "content": None}
    result = {"role": "tool", "tool_call_id": "1", "content": "on its way"}
    last = {**assistant("Tomorrow."), "reasoning_content": "It is near.", "weight": 1}
    task = one({"messages": [system, user("Where is 7?"), call, result, last], "tools": TOOLS})
    chat = task.train[0].conversation
    assert chat is not None and chat.tools == TOOLS
    assert chat.messages == [system, user("Where is 7?"), {**call, "content": ""}, result, last]
    assert task.train[0].head == "Be brief.\n\n"
    assert task.train[0].body == (
        'User: Where is 7?\nAssistant: [{"name": "track", "arguments": {"parcel": 7}}]\nTool: on its way'
    )
    assert task.passed_over == ()


def test_a_learned_tool_call_is_readable_json():
    task = one({"messages": [user("Where is 7?"), {"role": "assistant", "tool_calls": [CALL]}]})
    assert json.loads(task.train[0].target) == [{"name": "track", "arguments": {"parcel": 7}}]


def test_arguments_that_are_json_text_become_objects_as_servers_do_it():
    text = {"function": {"name": "track", "arguments": '{"parcel": 7}'}}
    task = one(
        {"messages": [user("a"), {"role": "assistant", "tool_calls": [text]}], "tools": json.dumps(TOOLS)}
    )
    chat = task.train[0].conversation
    assert chat is not None and chat.tools == TOOLS
    assert chat.messages[1]["tool_calls"][0]["function"]["arguments"] == {"parcel": 7}


def test_sharegpt_with_system_tools_and_calls():
    turns = [("human", "Where is 7?"), ("function_call", '{"name": "track", "arguments": {"parcel": 7}}')]
    turns += [("observation", "near"), ("gpt", "Tomorrow.")]
    row = {"conversations": [{"from": who, "value": text} for who, text in turns], "system": "Be brief."}
    chat = one(row).train[0].conversation
    assert chat is not None
    assert [turn["role"] for turn in chat.messages] == ["system", "user", "assistant", "tool", "assistant"]
    call = {"type": "function", "function": {"name": "track", "arguments": {"parcel": 7}}}
    assert chat.messages[2]["tool_calls"] == [call]
    turns[1] = ("function_call", json.dumps([call["function"], call]))
    row = {"conversations": [{"from": who, "value": text} for who, text in turns]}
    chat = one(row).train[0].conversation
    assert chat is not None and chat.messages[1]["tool_calls"] == [call, call]


def test_instruction_and_options_stand_before_the_first_question_of_a_chat():
    row = {"messages": [user("One"), assistant("a"), user("Two"), assistant("b")], "options": ["a", "b"]}
    example = one(row, instruction="Choose.").train[0]
    assert example.conversation is not None
    assert example.conversation.messages[0]["content"] == "Choose.\nOption: a, b\nOne"
    assert example.input == "Choose.\nOption: a, b\nUser: One\nAssistant: a\nUser: Two\nAssistant:"


def test_prompt_and_completion_may_be_messages():
    example = one({"prompt": [user("Where?")], "completion": [assistant("here")]}).train[0]
    assert example.conversation is not None
    assert example.conversation.messages == [user("Where?"), assistant("here")]
    assert (example.input, example.target) == ("Where?", "here")


def test_alpaca_with_system_and_history_is_a_chat_as_llama_factory_has_it():
    row = {"instruction": "Say it.", "input": "Where?", "output": "here", "system": "Be brief."}
    chat = one({**row, "history": [["Hello", "Hi"]]}).train[0].conversation
    assert chat is not None
    assert [turn["content"] for turn in chat.messages] == [
        "Be brief.",
        "Hello",
        "Hi",
        "Say it.\nWhere?",
        "here",
    ]
    plain = one({**row, "history": [], "input": ""}).train[0]
    assert plain.conversation is not None and plain.conversation.messages[1] == user("Say it.")
    assert plain.input == "Say it.\nBe brief.\n\nAnswer:"


def test_a_cue_of_the_reader_is_marked_and_one_of_the_data_is_not():
    row = {"input": "Where?", "output": "here"}
    assert one(row, instruction="Say.").train[0].cue_added
    assert not one(row).train[0].cue_added
    own = one({**row, "input": "Where?\nAnswer:"}, instruction="Say.").train[0]
    assert (own.tail, own.cue_added) == ("\nAnswer:", False)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"messages": [user("a"), assistant("b"), user("c")]},
            "Leave out what comes after the assistant's last",
        ),
        (
            {"messages": [user("a"), {"role": "assistant", "tool_calls": [{}]}]},
            "a tool call of message 2 has no",
        ),
        (
            {"messages": [user("a"), {"role": "assistant", "tool_calls": 5}]},
            "tool calls of message 2 are a num",
        ),
        ({"messages": [user("a"), assistant("b")], "tools": "x"}, "'tools' is text, expected a list"),
        (
            {"messages": [user("a"), assistant("b")], "tools": ["x"]},
            "'tools' entry 1 is text, expected an obj",
        ),
        ({"messages": [user("a"), {**assistant("b"), "x": object()}]}, "a value that JSON does not allow"),
        ({"conversations": [{"from": "humn", "value": "a"}, {}]}, "'from' of message 1 is 'humn'.*'human'"),
        ({"prompt": [user("a")], "completion": "b"}, "'completion' is text, expected a list of messages"),
        (
            {"instruction": "a", "output": "b", "history": ["x"]},
            "'history' entry 1 is text, expected two texts",
        ),
        ({"input": "a", "output": {"b": 1}}, r"'output' is an object, .* as text: json\.dumps"),
        ({"prompt": "a", "completion": [user("a")]}, "'completion' is a list of messages and 'prompt' is te"),
        ({"question": "a", "answer": 5}, r"'answer' is a number \(5\), expected text in quotes"),
        (
            {"text": "a", "label": 1},
            r"'label' is the number 1.*say what the numbers stand for with .labels.: ",
        ),
        ({"text": "a", "label": None}, "'label' is null, or -1, which means no label"),
        ({"text": "a", "summary": "b", "output": "c"}, "the field 'input' is missing"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, 'columns: {"completion": "chosen"}'),
        ({"q": "a", "a": "b"}, r"found the fields: 'q', 'a'. Known are: messages; .* with columns"),
        ({"question": "a"}, "the field 'answer' is missing"),
    ],
)
def test_a_refusal_names_the_row_and_a_way(row: dict[str, Any], message: str):
    with pytest.raises(DataError, match=rf"t, train row 1: .*{message}"):
        one(row)


def test_a_task_is_either_text_to_continue_or_has_answers():
    with pytest.raises(DataError, match=r"row 2: a row with only 'text'.*Put the two into separate tasks"):
        as_task([{"input": "a", "output": "b"}, {"text": "c"}], name="t")
    with pytest.raises(DataError, match="found 'instruction' too, which would not be used"):
        one({"text": "c"}, instruction="Go on.")


# Labels and metrics


def test_numbers_of_labels_become_their_names():
    assert one({"text": "a", "label": 1}, labels=["bad", "good"]).train[0].target == "good"
    assert one({"text": "a", "label": "1"}, labels=["bad", "good"]).train[0].target == "good"
    with pytest.raises(DataError, match="the number 2, expected one below 2"):
        one({"text": "a", "label": 2}, labels=["bad", "good"])


@pytest.mark.parametrize(
    ("rows", "options", "metric", "why"),
    [
        ([{"input": "a", "output": "b"}], {}, "rouge_l", "free text"),
        ([{"input": "a", "output": "b"}], {"labels": ["b"]}, "exact_match", "labels are given"),
        ([{"input": "a", "output": "b", "options": ["b"]}], {}, "exact_match", "options are given"),
        ([{"text": "a", "label": "b"}], {}, "exact_match", "the labels are those in the data"),
        ([{"input": "a", "output": "b"}], {"metric": "exact_match"}, "exact_match", "named in learn()"),
        ([{"text": "a"}], {}, "perplexity", "text to continue"),
    ],
)
def test_the_metric_says_why(rows: list[dict[str, Any]], options: dict[str, Any], metric: str, why: str):
    task = as_task(rows, name="t", **options)
    assert (task.metric, task.metric_why) == (metric, why)


# Columns, and what is not read


def test_columns_say_what_the_data_calls_otherwise():
    row = {"q": "Where?", "a": "here", "input": "something else"}
    task = one(row, columns={"input": "q", "output": "a"})
    assert (task.train[0].input, task.train[0].target) == ("Where?", "here")
    assert task.passed_over == ("the field 'input' of 1 row was not read.",)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"input": "qq", "output": "a"},
            "names the column 'qq', which task 't' does not have; found 'q', 'a'",
        ),
        ({"inptu": "q"}, "'columns' names 'inptu'.*Did you mean 'input'"),
        ({"input": 5}, r"'columns' 'input' is a number \(5\)"),
        ("q", "'columns' is text, expected an object such as"),
    ],
)
def test_wrong_columns_are_refused(columns: Any, message: str):
    with pytest.raises(DataError, match=message):
        one({"q": "Where?", "a": "here"}, columns=columns)


@pytest.mark.parametrize("value", ["", None, "  "])
def test_an_empty_cell_is_refused_by_the_name_that_the_file_gives_its_column(value: Any):
    message = r"'output' \(column 'a'\) is (empty|null), expected text.*leave out the rows that have none"
    with pytest.raises(DataError, match=message):
        one({"q": "Where?", "a": value}, columns={"input": "q", "output": "a"})


def test_a_refusal_says_how_columns_are_named_where_the_user_is(tmp_path: Path):
    with pytest.raises(DataError, match=r"in learn\(\); in the shell with --column input=\.\.\."):
        one({"frage": "Where?", "antwort": "here"})
    (tmp_path / "faq.csv").write_text("frage,antwort\nWhere?,here\n", "utf-8")
    with pytest.raises(DataError, match=r"of the run's YAML.*, or for one task in its task\.json; or rename"):
        read_stream(tmp_path)


def test_fields_that_are_not_read_are_named_with_the_nearest():
    row = {"instuction": "Say.", "input": "Where?", "output": "here", "source": "web", "idx": 4, "empty": ""}
    task = one(row)
    assert task.passed_over == (
        "the field 'instuction' of 1 row was not read. Did you mean 'instruction'?",
        "fields that say where a row comes from were not read: 'idx', 'source'.",
    )
    assert one({"": 7, "input": "Where?", "output": "here"}).passed_over == (
        "the field without a name of 1 row was not read.",
    )
    both = one({**row, "messages": [user("a"), assistant("b")]})
    assert any("'input' of 1 row" in said for said in both.passed_over)
    odd = one({"messages": [user("a"), {**assistant("b"), "tool_cals": [CALL]}]})
    assert "'tool_cals' (did you mean 'tool_calls'?)" in odd.passed_over[0]


def test_rows_of_several_formats_are_read_row_by_row():
    rows = [
        {"messages": [user("a"), assistant("b")], "input": None},
        {"messages": None, "input": "c", "output": "d"},
    ]
    task = as_task(rows, name="t", to_learn=False)
    assert [example.target for example in task.train] == ["b", "d"]
    assert task.format == "messages and input_output"


def test_an_unknown_format_is_refused_and_a_named_one_is_kept_to():
    with pytest.raises(DataError, match=r"'format' is 'alpca'.*Did you mean 'alpaca'"):
        one({"input": "a", "output": "b"}, format="alpca")
    with pytest.raises(DataError, match="the field 'question' is missing"):
        one({"input": "a", "output": "b"}, format="question_answer")
