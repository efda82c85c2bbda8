"""Token ids that are kept for other runs are those that would be made anew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kifuse.errors import DataError
from kifuse.io.storage import write_tensors
from kifuse.tasks.encoding import Encoder
from kifuse.tasks.task import Example
from kifuse.tasks.token_cache import CachingEncoder, TokenCache
from kifuse.tasks.token_files import WORTH
from tests.tiny import build_tokenizer

EXAMPLES = [
    Example("Which? ", f"the harbour opens again {'and again ' * 3 * i}", "\nAnswer:", (target, "other"))
    for i in range(6)
    for target in ("World", "Sports or Business or Science")
]
LIMITS: dict[str, Any] = {"encoder_decoder": False, "max_input": 20, "max_target": 2}


class Counting:
    """A tokenizer that counts the texts it is given."""

    def __init__(self) -> None:
        self.inner, self.texts = build_tokenizer(), 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __call__(self, texts: Any, **settings: Any) -> Any:
        self.texts += 1 if isinstance(texts, str) else len(texts)
        return self.inner(texts, **settings)


@pytest.mark.parametrize("chat", [False, True])
def test_kept_token_ids_are_those_of_an_encoder_without_a_cache(chat: bool) -> None:
    settings = {**LIMITS, "max_input": 40, "chat_template": chat}
    plain = Encoder(build_tokenizer(), **settings).encode_many(EXAMPLES)
    assert any(each.cut for each in plain) and any(each.target_cut for each in plain)
    cache = TokenCache()
    for examples in (EXAMPLES[4:], EXAMPLES, EXAMPLES[::-1]):
        made = CachingEncoder(build_tokenizer(), source="a", cache=cache, **settings).encode_many(examples)
        assert made == [plain[EXAMPLES.index(each)] for each in examples]


def test_another_run_tokenises_nothing_that_was_seen() -> None:
    cache, first, second = TokenCache(), Counting(), Counting()
    CachingEncoder(first, source="a", cache=cache, **LIMITS).encode_many(EXAMPLES)
    encoder = CachingEncoder(second, source="a", cache=cache, **LIMITS)
    before = second.texts
    assert encoder.encode_many([*EXAMPLES[3:], *EXAMPLES]) and second.texts == before
    assert first.texts > len(EXAMPLES)


def test_what_is_taken_out_may_be_changed() -> None:
    encoder = CachingEncoder(build_tokenizer(), source="a", cache=TokenCache(), **LIMITS)
    before = encoder.encode(EXAMPLES[0])
    encoder.encode(EXAMPLES[0]).input_ids.clear()
    assert encoder.encode(EXAMPLES[0]) == before


def test_other_limits_models_and_parts_of_an_input_share_nothing() -> None:
    cache, tokenizer = TokenCache(), build_tokenizer()
    long = Example("", "the harbour opens again and again " * 5, "", ("World",))
    other = Example(long.body, "", "", ("World",))
    encoder = CachingEncoder(tokenizer, source="a", cache=cache, **LIMITS)
    assert encoder.encode(long).cut
    with pytest.raises(DataError, match=r"Raise data\.max_input"):
        encoder.encode(other)  # the same text, but nothing of it may be cut
    roomy = CachingEncoder(tokenizer, source="a", cache=cache, **{**LIMITS, "max_input": 400})
    assert not roomy.encode(long).cut
    pieces = CachingEncoder(build_tokenizer("pieces"), source="b", cache=cache, **LIMITS)
    assert pieces.encode(long).input_ids != encoder.encode(long).input_ids


MANY = [
    Example("Which? ", f"the harbour opens again {'and again ' * (i % 9)} {i}", "\nAnswer:", ("World",))
    for i in range(WORTH)
]


def test_the_next_process_tokenises_nothing_that_a_folder_holds(tmp_path: Path) -> None:
    plain = Encoder(build_tokenizer(), **LIMITS).encode_many(MANY)
    assert any(each.cut for each in plain) and not all(each.cut for each in plain)
    for started in range(2):
        tokenizer = Counting()
        encoder = CachingEncoder(tokenizer, source="a", cache=None, folder=tmp_path, **LIMITS)
        before = tokenizer.texts
        assert encoder.encode_many(MANY) == plain
        assert (tokenizer.texts == before) == bool(started)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_few_examples_are_worth_no_file(tmp_path: Path) -> None:
    CachingEncoder(build_tokenizer(), source="a", cache=None, folder=tmp_path, **LIMITS).encode_many(MANY[1:])
    assert not list(tmp_path.iterdir())


def test_other_texts_limits_and_tokenizers_have_files_of_their_own(tmp_path: Path) -> None:
    other = build_tokenizer("bytes")
    changed = [*MANY[:-1], replace(MANY[-1], references=("Sports",))]
    runs: list[tuple[Any, dict[str, Any], list[Example]]] = [
        (build_tokenizer(), LIMITS, MANY),
        (build_tokenizer(), LIMITS, changed),
        (build_tokenizer(), LIMITS, MANY[::-1]),
        (build_tokenizer(), {**LIMITS, "max_input": 21}, MANY),
        (other, {**LIMITS, "max_input": 90}, MANY),
    ]
    for tokenizer, limits, examples in runs:
        found = CachingEncoder(tokenizer, source="a", cache=None, folder=tmp_path, **limits)
        assert found.encode_many(examples) == Encoder(tokenizer, **limits).encode_many(examples)
    assert len(list(tmp_path.iterdir())) == len(runs)


@pytest.mark.parametrize("damage", ["cut short", "one byte", "other tensors", "empty"])
def test_a_damaged_file_is_made_anew(damage: str, tmp_path: Path) -> None:
    def encode() -> list[Any]:
        encoder = CachingEncoder(build_tokenizer(), source="a", cache=None, folder=tmp_path, **LIMITS)
        return encoder.encode_many(MANY)

    first = encode()
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    if damage == "other tensors":
        write_tensors(file, {"ids": torch.zeros(3)}, {})
    else:
        flipped = whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]
        file.write_bytes({"cut short": whole[:-9], "one byte": flipped, "empty": b""}[damage])
    assert encode() == first
    assert file.read_bytes() == whole


def test_a_template_that_writes_the_date_keeps_nothing(tmp_path: Path) -> None:
    tokenizer: Any = build_tokenizer()
    tokenizer.chat_template = "{{ strftime_now('%d') }}" + tokenizer.chat_template
    limits = {**LIMITS, "max_input": 60, "chat_template": True}
    CachingEncoder(tokenizer, source="a", cache=None, folder=tmp_path, **limits).encode_many(MANY)
    assert not list(tmp_path.iterdir())
