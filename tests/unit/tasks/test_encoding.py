from __future__ import annotations

import copy

import pytest

from kifuse.errors import DataError, ModelError
from kifuse.tasks import Encoder, Example
from tests.tiny import CHAT_TEMPLATE, build_tokenizer

HEAD = "What is the topic of the following paragraph? Choose one from the option. Option: World, Sports.\n"
WORDS = " ".join(f"word{i}" for i in range(300))
SHORT = Example(HEAD, "Title: Old harbour 東京 😀", "\nAnswer:", ("Sports",))
LONG = Example(HEAD, WORDS, "\nAnswer:", ("World",))
VARIANTS = [("bytes", False), ("bytes", True), ("pieces", False), ("pieces", True)]


@pytest.fixture(scope="module", params=VARIANTS, ids=lambda v: f"{v[0]}{'-bos' if v[1] else ''}")
def tokenizer(request):
    kind, bos = request.param
    return build_tokenizer(kind, bos=bos)


def test_a_short_prompt_is_tokenised_as_a_user_would(tokenizer):
    encoder = Encoder(tokenizer, encoder_decoder=False)
    assert encoder.encode(SHORT).input_ids == tokenizer(SHORT.input)["input_ids"]
    assert not encoder.encode(SHORT).cut


def test_prompt_and_target_join_to_the_tokens_of_the_whole_text(tokenizer):
    encoded = Encoder(tokenizer, encoder_decoder=False).encode(SHORT)
    whole = tokenizer(SHORT.input + " Sports")["input_ids"]
    assert encoded.input_ids + encoded.target_ids == [*whole, tokenizer.eos_token_id]


@pytest.mark.parametrize(
    ("kind", "tail"), [("bytes", "\nAnswer: "), ("bytes", "\nAnswer:\n"), ("pieces", "\nAnswer:\n")]
)
def test_no_second_space_after_a_prompt_that_ends_with_one(kind, tail):
    tokenizer = build_tokenizer(kind)
    item = Example("", "Some text", tail, ("Sports",))
    encoded = Encoder(tokenizer, encoder_decoder=False).encode(item)
    assert tokenizer.decode(encoded.input_ids + encoded.target_ids[:-1]) == "Some text" + tail + "Sports"


def test_a_target_with_its_own_space_gets_no_other(tiny_tokenizer):
    encoder = Encoder(tiny_tokenizer, encoder_decoder=False)
    item = Example("", "Text", "\nOutput:", (" Miles slept.",))
    assert tiny_tokenizer.decode(encoder.encode(item).target_ids[:-1]) == " Miles slept."


def test_an_empty_target_is_the_end_alone(tiny_tokenizer):
    for encoder_decoder in (False, True):
        encoder = Encoder(tiny_tokenizer, encoder_decoder=encoder_decoder)
        assert encoder.encode(Example("", "Text", "", ("",))).target_ids == [tiny_tokenizer.eos_token_id]


def test_a_prompt_never_ends_with_the_end_token_a_tokenizer_adds():
    tokenizer = build_tokenizer(bos=True, eos=True)
    encoded = Encoder(tokenizer, encoder_decoder=False).encode(SHORT)
    assert encoded.input_ids == tokenizer(SHORT.input)["input_ids"][:-1]
    assert encoded.target_ids[-1:] == [tokenizer.eos_token_id]
    assert tokenizer.eos_token_id not in encoded.target_ids[:-1]


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_encoder_decoder_inputs_and_targets_are_those_of_the_tokenizer(kind):
    tokenizer = build_tokenizer(kind, eos=True)
    encoded = Encoder(tokenizer, encoder_decoder=True).encode(SHORT)
    assert encoded.input_ids == tokenizer(SHORT.input)["input_ids"]
    assert encoded.target_ids == tokenizer(text_target="Sports")["input_ids"]


@pytest.mark.parametrize("limit", [100, 101, 130])
def test_a_long_prompt_loses_only_the_middle_of_its_body(tokenizer, limit):
    encoded = Encoder(tokenizer, encoder_decoder=False, max_input=limit).encode(LONG)
    whole = tokenizer(LONG.input)["input_ids"]
    assert encoded.cut
    assert len(encoded.input_ids) == limit
    # What is left is a beginning and an end of the whole text, about the same share of the body of each.
    start = next(i for i, (a, b) in enumerate(zip(encoded.input_ids, whole, strict=False)) if a != b)
    assert encoded.input_ids[start:] == whole[len(whole) - (limit - start) :]
    text = tokenizer.decode(encoded.input_ids, skip_special_tokens=True).strip()
    assert text.startswith(HEAD + "word0 word1")
    assert text.endswith("word299\nAnswer:")


def test_an_encoder_decoder_prompt_keeps_its_end_token_when_cut():
    tokenizer = build_tokenizer("pieces", eos=True)
    encoded = Encoder(tokenizer, encoder_decoder=True, max_input=100).encode(LONG)
    assert len(encoded.input_ids) == 100
    assert encoded.input_ids[-1] == tokenizer.eos_token_id


def test_a_prompt_of_exactly_the_limit_is_not_cut(tokenizer):
    size = len(tokenizer(LONG.input)["input_ids"])
    assert not Encoder(tokenizer, encoder_decoder=False, max_input=size).encode(LONG).cut
    assert Encoder(tokenizer, encoder_decoder=False, max_input=size - 1).encode(LONG).cut


@pytest.mark.parametrize("chat", [False, True])
def test_an_instruction_that_alone_is_too_long_is_refused(tiny_tokenizer, chat):
    encoder = Encoder(tiny_tokenizer, encoder_decoder=False, max_input=12, chat_template=chat)
    with pytest.raises(DataError, match=r"What is the topic.*take \d+ tokens.*is 12. Raise data\.max_input"):
        encoder.encode(LONG)


def test_chat_prompts_are_rendered_by_the_template(tokenizer):
    encoder = Encoder(tokenizer, encoder_decoder=False, chat_template=True)
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": SHORT.input}], tokenize=False, add_generation_prompt=True
    )
    encoded = encoder.encode(SHORT)
    assert encoded.input_ids == tokenizer(rendered, add_special_tokens=False)["input_ids"]
    joined = tokenizer.decode(encoded.input_ids + encoded.target_ids)
    assert joined.endswith("assistant\nSports<|end|>")


@pytest.mark.parametrize("limit", [110, 137])
def test_a_long_chat_prompt_keeps_template_instruction_and_cue(tiny_tokenizer, limit):
    item = Example(HEAD, "Grüße 😀 東京 " * 80, "\nAnswer:", ("World",))
    encoded = Encoder(tiny_tokenizer, encoder_decoder=False, max_input=limit, chat_template=True).encode(item)
    text = tiny_tokenizer.decode(encoded.input_ids)
    assert encoded.cut
    assert limit - 12 <= len(encoded.input_ids) <= limit
    assert text.startswith("<|turn|>user\n" + HEAD + "Grüße")
    assert text.endswith("\nAnswer:<|end|>\n<|turn|>assistant\n")
    assert "\ufffd" not in text


def test_a_long_target_is_cut_at_its_end_and_still_ends(tiny_tokenizer):
    item = Example("", "Text", "", (WORDS,))
    encoded = Encoder(tiny_tokenizer, encoder_decoder=False, max_target=16).encode(item)
    assert len(encoded.target_ids) == 16
    assert encoded.target_ids[-1] == tiny_tokenizer.eos_token_id
    assert encoded.target_cut
    assert not Encoder(tiny_tokenizer, encoder_decoder=False, max_target=16).encode(SHORT).target_cut


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("encoder_decoder", [False, True])
def test_many_at_once_give_what_each_gives_alone(tokenizer, chat, encoder_decoder):
    encoder = Encoder(tokenizer, encoder_decoder=encoder_decoder, max_input=120, chat_template=chat)
    items = [SHORT, LONG, Example("", "x", " ", ("y",)), Example("", "ends.", "", ("Grüße",)), SHORT]
    assert encoder.encode_many(items) == [encoder.encode(item) for item in items]
    assert [encoder.prompt(item) for item in items] == [e.input_ids for e in encoder.encode_many(items)]
    assert encoder.encode_many([]) == []


def test_a_template_that_thinks_where_it_is_asked_is_asked_without(tiny_tokenizer):
    tokenizer = copy.copy(tiny_tokenizer)
    asked = "{% if add_generation_prompt and enable_thinking is not defined %}"
    tokenizer.chat_template = asked + "<|turn|>system\nThink.<|end|>{% endif %}" + CHAT_TEMPLATE
    encoder = Encoder(tokenizer, encoder_decoder=False, chat_template=True)
    assert encoder.notes == [
        "prompts are written with enable_thinking=False. Serve the adapter with the same setting."
    ]
    example = Example("", "Who?", "", ("me",))
    encoded = encoder.encode(example)
    assert encoded.input_ids == encoder.prompt(example)
    assert tokenizer.decode(encoded.input_ids) == "<|turn|>user\nWho?<|end|>\n<|turn|>assistant\n"
    assert tokenizer.decode(encoded.target_ids) == "me<|end|>"


def test_what_cannot_be_encoded_is_refused(tiny_tokenizer):
    with pytest.raises(DataError, match="empty text"):
        Encoder(tiny_tokenizer, encoder_decoder=False).encode(Example("", "", "", ("",)))
    with pytest.raises(DataError, match=r"data\.max_input is 1"):
        Encoder(tiny_tokenizer, encoder_decoder=False, max_input=1)
    plain = build_tokenizer()
    plain.chat_template = None
    with pytest.raises(ModelError, match=r"no chat template; set data.chat_template to false"):
        Encoder(plain, encoder_decoder=False, chat_template=True)
    plain.eos_token = None
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        Encoder(plain, encoder_decoder=False)
