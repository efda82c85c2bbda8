"""What is trained on is what a server asks, word for word, in every family of chat models."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kifuse.errors import DataError
from kifuse.scoring import score_all
from kifuse.tasks import Encoder, Example
from kifuse.tasks.any_task import as_task
from kifuse.tasks.collator import IGNORED, Collator
from kifuse.tasks.encoded import Encoded
from kifuse.tasks.readers import read_task
from kifuse.tasks.turns import with_learned_turns
from tests.chat_families import FAMILIES, TOOLS

TOKENIZERS = {name: family.tokenizer() for name, family in FAMILIES.items()}
ENCODERS = {
    name: Encoder(tokenizer, encoder_decoder=False, chat_template=True).uncut()
    for name, tokenizer in TOKENIZERS.items()
}
WITH_CALLS = [name for name, family in FAMILIES.items() if family.calls]
SYSTEM = {"role": "system", "content": "You route parcels."}
HI, HELLO = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello, 東京 😀!"}
ASK, ANSWER = {"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": "zebra"}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"type": "function", "id": "abcdefghi", "function": {"name": "track", "arguments": {"parcel": 7}}}
    ],
}
RESULT = {"role": "tool", "content": "in town", "tool_call_id": "abcdefghi"}

Message = dict[str, Any]


def example_of(messages: list[Message], tools: Any = None) -> Example:
    row = {"messages": messages} | ({"tools": tools} if tools else {})
    return as_task([row], name="chats", to_learn=False).train[0]


def encode(name: str, example: Example) -> Encoded:
    return ENCODERS[name].encode(example)


def rendered(name: str, messages: list[Message], tools: Any, *, asking: bool) -> str:
    """What the plain tokenizer renders."""
    found = TOKENIZERS[name].apply_chat_template(
        messages, tools=tools, tokenize=False, add_generation_prompt=asking
    )
    assert isinstance(found, str)
    return found


def check(name: str, messages: list[Message], tools: Any = None) -> Encoded:
    """The prompt is a server's, and prompt and target are the whole chat up to the end of its last turn."""
    tokenizer, family = TOKENIZERS[name], FAMILIES[name]
    encoded = encode(name, example_of(messages, tools))
    asked = rendered(name, messages[:-1], tools, asking=True)
    whole = rendered(name, messages, tools, asking=False).rstrip()
    assert tokenizer.decode(encoded.input_ids) == asked
    assert encoded.input_ids == tokenizer(asked, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(encoded.input_ids + encoded.target_ids) == whole
    assert whole.endswith(family.end)
    assert encoded.target_ids[-1] == tokenizer.convert_tokens_to_ids(family.end)
    assert encoded.target_ids.count(encoded.target_ids[-1]) == 1
    return encoded


@pytest.mark.parametrize("system", [True, False])
@pytest.mark.parametrize("turns", [[], [HI, HELLO], [HI, HELLO, ASK, ANSWER]], ids=len)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_chat_is_trained_as_it_is_served(name: str, turns: list[Message], system: bool):
    encoded = check(name, [*[SYSTEM] * system, *turns, ASK, ANSWER])
    tokenizer, family = TOKENIZERS[name], FAMILIES[name]
    assert str(tokenizer.decode(encoded.input_ids)).endswith(family.header)
    assert tokenizer.decode(encoded.target_ids) == family.lead + "zebra" + family.end


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_of_input_and_output_are_a_users_question(name: str):
    row = as_task([{"input": "Where is it?", "output": "zebra"}], name="rows", to_learn=False).train[0]
    assert encode(name, row) == check(name, [ASK, ANSWER])


@pytest.mark.parametrize("name", WITH_CALLS)
def test_calls_of_tools_are_trained_and_their_results_are_asked_with(name: str):
    asked = [SYSTEM, HI, HELLO, ASK]
    called = check(name, [*asked, CALL], TOOLS)
    text = TOKENIZERS[name].decode(called.target_ids)
    assert '"track"' in text and '{"parcel": 7}' in text
    check(name, [*asked, CALL, RESULT, ANSWER], TOOLS)


def test_a_call_that_the_template_does_not_know_is_refused_and_so_is_what_the_template_refuses():
    with pytest.raises(DataError, match=r"leaves out the tool calls|refuses this chat"):
        encode("gemma", example_of([ASK, CALL]))
    with pytest.raises(DataError, match="refuses this chat: Conversation roles must alternate"):
        encode("gemma", example_of([ASK, HI, ANSWER]))
    nameless = {**CALL, "tool_calls": [{"function": {"name": "track", "arguments": {}}}]}
    with pytest.raises(DataError, match="refuses this chat: Tool call IDs"):
        encode("mistral3", example_of([ASK, nameless]))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_end_of_a_turn_is_learned_and_stops_generation(name: str):
    tokenizer, family = TOKENIZERS[name], FAMILIES[name]
    end = tokenizer.convert_tokens_to_ids(family.end)
    encoder = Encoder(tokenizer, encoder_decoder=False, chat_template=True)
    batch = encoder.encode_many([example_of([ASK, ANSWER]), example_of([HI, HELLO])])
    for row in Collator(0, encoder_decoder=False)(batch)["labels"]:
        learned = row[row != IGNORED].tolist()
        assert learned[-1] == end and learned.count(end) == 1
    assert (end,) in encoder.stops and (tokenizer.eos_token_id,) in encoder.stops


@pytest.mark.parametrize("ending", ["{end}", "{eos}", "{end}\n", "{end}{eos}"])
@pytest.mark.parametrize("name", FAMILIES)
def test_an_answer_that_ends_already_is_given_no_other_end(name: str, ending: str):
    written = "zebra" + ending.format(end=FAMILIES[name].end, eos=FAMILIES[name].eos)
    assert encode(name, example_of([ASK, {**ANSWER, "content": written}])) == check(name, [ASK, ANSWER])


@pytest.mark.parametrize("name", FAMILIES)
def test_each_answer_that_is_learned_is_asked_for_as_a_server_would(name: str):
    messages = [SYSTEM, HI, HELLO, ASK, {**ANSWER, "weight": 0}, HI, {"role": "assistant", "content": "owl"}]
    plain = [{key: value for key, value in m.items() if key != "weight"} for m in messages]
    task = as_task([{"messages": messages}], name="chats", to_learn=False)
    [last] = with_learned_turns(task, "last").train
    assert encode(name, last) == check(name, plain)
    first, other = with_learned_turns(task, "all").train
    assert encode(name, first) == check(name, plain[:3])
    assert encode(name, other) == check(name, plain)


def test_a_thought_is_learned_and_earlier_thoughts_are_no_part_of_a_prompt():
    thinking = {**ANSWER, "reasoning_content": "It is striped."}
    check("qwen3", [ASK, thinking, HI, thinking])
    encoded = encode("qwen3", example_of([ASK, thinking, HI, thinking]))
    tokenizer = TOKENIZERS["qwen3"]
    assert "striped" not in tokenizer.decode(encoded.input_ids)
    assert str(tokenizer.decode(encoded.target_ids)).startswith("<think>\nIt is striped.\n</think>\n\nzebra")


def test_a_prompt_that_already_holds_the_empty_thought_is_asked_for_the_answer_alone():
    tokenizer = FAMILIES["qwen3"].tokenizer()
    # as of the models of this family that never think
    tokenizer.chat_template = FAMILIES["qwen3"].template.replace(
        "enable_thinking is defined and enable_thinking is false", "true"
    )
    encoder = Encoder(tokenizer, encoder_decoder=False, chat_template=True)
    encoded = encoder.encode(example_of([ASK, ANSWER]))
    asked = tokenizer.apply_chat_template([ASK], tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(encoded.input_ids) == asked
    assert tokenizer.decode(encoded.target_ids) == "zebra<|im_end|>"


def test_a_prompt_that_opens_a_thought_is_gone_on_from():
    tokenizer = FAMILIES["qwen3"].tokenizer()
    # as of the models of this family that always think
    tokenizer.chat_template = (
        FAMILIES["qwen3"]
        .template.replace("enable_thinking is defined and enable_thinking is false", "true")
        .replace("{{- '<think>\\n\\n</think>\\n\\n' }}", "{{- '<think>\\n' }}")
    )
    encoder = Encoder(tokenizer, encoder_decoder=False, chat_template=True)
    for thought, learned in ((None, "\n</think>\n\nzebra"), ("Stripes.", "Stripes.\n</think>\n\nzebra")):
        encoded = encoder.encode(example_of([ASK, {**ANSWER, "reasoning_content": thought}]))
        assert str(tokenizer.decode(encoded.input_ids)).endswith("<|im_start|>assistant\n<think>\n")
        assert tokenizer.decode(encoded.target_ids) == learned + "<|im_end|>"


def test_a_template_without_a_mark_at_the_end_of_an_answer_ends_it_with_the_end_of_text():
    tokenizer = FAMILIES["chatml"].tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    encoder = Encoder(tokenizer, encoder_decoder=False, chat_template=True)
    encoded = encoder.encode(example_of([ASK, ANSWER]))
    assert tokenizer.decode(encoded.input_ids) == "user: Where is it?\nassistant: "
    assert tokenizer.decode(encoded.target_ids) == "zebra<|endoftext|>"


def encoded_by(template: str, *more: str, messages: list[Message], eos: str = "<|im_end|>"):
    """What is trained under a template of the ChatML family in which some tokens more are special."""
    tokenizer = FAMILIES["chatml"].tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", *more]})
    tokenizer.eos_token = eos
    tokenizer.chat_template = template
    encoder = Encoder(tokenizer, encoder_decoder=False, chat_template=True)
    return str(tokenizer.decode(encoder.encode(example_of(messages)).target_ids)), encoder


CHATML = FAMILIES["chatml"].template


def test_marks_between_an_answer_and_the_end_of_each_turn_belong_to_the_answer():
    # as of Command R7B: each answer stands in a frame, and the end of the turn behind it
    framed = CHATML.replace(
        "message['content'] }}",
        "message['content'] + ('<|/answer|>' if message['role'] == 'assistant' else '') }}",
    )
    target, encoder = encoded_by(framed, "<|/answer|>", messages=[ASK, ANSWER])
    assert target == "zebra<|/answer|><|im_end|>" and encoder.template is not None
    assert encoder.template.end == "<|im_end|>"
    # as of Phi 3: what follows the last answer alone ends the whole text, and no turn
    closed = CHATML + "{%- if not add_generation_prompt %}{{ eos_token }}{% endif %}"
    assert encoded_by(closed, messages=[ASK, ANSWER], eos="<|endoftext|>")[0] == "zebra<|im_end|>"


def test_marks_around_a_call_are_part_of_it_and_do_not_end_the_turn():
    # as of LFM2: the call closes with a mark of its own, and then the turn ends
    marked = CHATML.replace("<tool_call>", "<|call|>").replace("</tool_call>", "<|/call|>")
    target, encoder = encoded_by(marked, "<|call|>", "<|/call|>", messages=[ASK, CALL])
    assert target.endswith("<|/call|><|im_end|>")
    assert len(encoder.stops) == 1
    # as of Gemma 4: a call hands over to the tool, and its last mark is where generation stops
    handed = marked.replace(
        "    {{- '<|im_end|>\\n' }}\n{%- endfor",
        "    {{- '<|tool|>' if message['tool_calls'] else '<|im_end|>\\n' }}\n{%- endfor",
    )
    target, _ = encoded_by(handed, "<|call|>", "<|/call|>", "<|tool|>", messages=[ASK, CALL])
    assert target.endswith("<|/call|><|tool|>")


def test_a_prompt_that_closes_the_thought_leaves_no_room_for_one_and_that_is_said():
    template = FAMILIES["qwen3"].template.replace(
        "enable_thinking is defined and enable_thinking is false", "true"
    )
    thinking = {**ANSWER, "reasoning_content": "Stripes."}
    inside = {**ANSWER, "content": "<think>\nStripes.\n</think>\n\nzebra"}
    for answer in (thinking, inside):
        target, encoder = encoded_by(template, messages=[ASK, answer])
        assert target == "zebra<|im_end|>"
        assert encoder.notes == [
            "prompts of this template end the reasoning, so reasoning in answers is not learned."
        ]


def test_calls_of_sharegpt_are_given_to_the_template_as_servers_give_them():
    row = {
        "conversations": [
            {"from": "human", "value": "Where is it?"},
            {"from": "function_call", "value": '{"name": "track", "arguments": {"parcel": 7}}'},
        ],
        "tools": TOOLS,
    }
    [example] = as_task([row], name="rows", to_learn=False).train
    call = {"type": "function", "function": {"name": "track", "arguments": {"parcel": 7}}}
    asked = {"role": "assistant", "content": "", "tool_calls": [call]}
    assert encode("llama3", example) == check("llama3", [ASK, asked], TOOLS)


def test_an_answer_of_nothing_but_special_tokens_is_refused_with_its_place(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"input": "x", "output": "y"}\n{"input": "x", "output": "</s>"}\n', encoding="utf-8"
    )
    [_, example] = read_task(tmp_path / "a.jsonl").train
    for name in FAMILIES:
        with pytest.raises(
            DataError, match=r"a\.jsonl:2: Example 'x…': the answer '</s>' consists of special"
        ):
            encode(name, example)
    plain = FAMILIES["llama3"].tokenizer()
    with pytest.raises(DataError, match=r"a\.jsonl:2: .* consists of special tokens only"):
        Encoder(plain, encoder_decoder=False).encode(example)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(str.strip)


@st.composite
def chats(draw: st.DrawFn) -> list[Message]:
    turns = draw(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3))
    system = [{"role": "system", "content": draw(TEXT)}] if draw(st.booleans()) else []
    talk = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    return [*system, *talk]


@pytest.mark.parametrize("name", FAMILIES)
@given(messages=chats())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_chat_in_any_script_is_trained_as_it_is_served(name: str, messages: list[Message]):
    check(name, messages)
    for example in with_learned_turns(
        as_task([{"messages": messages}], name="chats", to_learn=False), "all"
    ).train:
        assert example.conversation is not None
        assert encode(name, example) == check(name, example.conversation.messages)


@pytest.mark.parametrize("name", WITH_CALLS)
@given(argument=st.dictionaries(TEXT, st.one_of(TEXT, st.integers(), st.booleans()), max_size=3), said=TEXT)
@settings(max_examples=15, deadline=None)
def test_any_call_of_a_tool_is_trained_as_it_is_served(name: str, argument: dict[str, Any], said: str):
    [call] = CALL["tool_calls"]
    call = {**call, "function": {"name": "track", "arguments": argument}}
    messages = [ASK, {**CALL, "tool_calls": [call]}, {**RESULT, "content": said}, ANSWER]
    check(name, messages[:2], TOOLS)
    check(name, messages, TOOLS)


@pytest.mark.parametrize("said", ["", "Let me look."])
@pytest.mark.parametrize("name", [name for name in WITH_CALLS if name != "llama3"])
def test_the_call_that_is_trained_is_the_right_answer_under_every_metric(name: str, said: str):
    if said and name == "mistral3":  # its calls stand alone
        return
    encoder = ENCODERS[name]
    example = example_of([ASK, {**CALL, "content": said}], TOOLS)
    target = encoder.without_end(encoder.encode(example).target_ids)
    right = encoder.answered(str(TOKENIZERS[name].decode(target, skip_special_tokens=True)).strip())
    wrong = right.replace("7", "8")
    for metric in ("exact_match", "rouge_l", "token_f1", "bleu", "chrf", "json", "code", "accuracy"):
        for answer, full in ((right, True), (wrong, False)):
            found = score_all([answer], [example], metric, seen=[encoder.references(example)])
            assert (found.score == 100.0) is full, (metric, answer)
    assert encoder.written(example) == (right,)
    assert example.target.endswith('[{"name": "track", "arguments": {"parcel": 7}}]')
