"""Starts that prompts share: the questions about one text are read after a single reading of it."""

from __future__ import annotations

import random
import weakref
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kifuse.answering import shared_starts as starts
from kifuse.answering.generation import greedy_generate
from kifuse.answering.running_batch import CausalRows
from kifuse.answering.session import Session
from kifuse.answering.shared_starts import families, stems
from tests.tiny import build_tokenizer
from tests.unit.answering.test_generation import FIRST, NEW, Passes, end_somewhere, plain_texts, shake

Prompts = list[list[int]]


def questions(vocabulary: int, counts: list[int], instruction: int = 10, text: int = 50) -> Prompts:
    """Prompts about some texts: an instruction, a text of its own length, one of so many questions."""
    draw = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [draw.randrange(FIRST, vocabulary) for _ in range(count)]

    begun, found = tokens(instruction), []
    for number, count in enumerate(counts):
        passage = tokens(text + 7 * number)
        found += [begun + passage + tokens(1 + 5 * number + each) for each in range(count)]
    draw.shuffle(found)
    return found


@pytest.mark.parametrize("budget", [8192, 250])  # all in one batch, and families cut by their batch's end
@pytest.mark.parametrize("instruction", [0, 10])
def test_answers_are_those_of_each_prompt_alone(
    instruction: int, budget: int, tiny_llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, model = build_tokenizer("bytes"), shake(tiny_llama)
    prompts = questions(len(tokenizer), [4, 3, 3, 1, 1, 2], instruction)
    assert max(map(len, members(families(prompts, instruction), prompts))) == 4
    end_somewhere(model, tokenizer, prompts)
    expected = plain_texts(model, tokenizer, prompts)
    assert len(set(expected)) > len(prompts) // 2
    for at_once, rows in ((640, 4), (150, 1), (30, 1)):
        monkeypatch.setattr("kifuse.answering.session._CPU_TOKENS", at_once)
        monkeypatch.setattr("kifuse.answering.session._CPU_ROWS", rows)
        found = greedy_generate(
            model, tokenizer, prompts, encoder_decoder=False, max_new_tokens=NEW, batch_tokens=budget
        )
        assert found == expected


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompts=st.lists(st.lists(st.integers(FIRST, FIRST + 2), min_size=1, max_size=9), min_size=2, max_size=9),
    budget=st.integers(8, 60),
    at_once=st.integers(1, 60),
)
def test_no_family_changes_an_answer(
    model_of_few_words: Any, prompts: Prompts, budget: int, at_once: int
) -> None:
    model, tokenizer = model_of_few_words
    with pytest.MonkeyPatch.context() as patch:
        answers = []
        for apart in (0, 10**6):  # families wherever two tokens are the same, and nowhere
            patch.setattr(starts, "_APART", apart)
            patch.setattr(starts, "_LEAST_SAVED", 0.0)
            patch.setattr(starts, "_MIN_START", 2)
            patch.setattr("kifuse.answering.session._CPU_TOKENS", at_once)
            patch.setattr("kifuse.answering.session._CPU_ROWS", 1)
            patch.setattr("kifuse.answering.session._CPU_PASS", 2)
            answers.append(
                greedy_generate(
                    model, tokenizer, prompts, encoder_decoder=False, max_new_tokens=4, batch_tokens=budget
                )
            )
    assert answers[0] == answers[1]


@pytest.fixture
def model_of_few_words(tiny_llama: Any) -> tuple[Any, Any]:
    model = shake(tiny_llama)
    with torch.no_grad():
        model.lm_head.weight[40:] = 0.0
    return model, build_tokenizer("bytes")


def test_a_text_goes_through_the_model_once(tiny_llama: Any) -> None:
    tokenizer = build_tokenizer("bytes")
    prompts = questions(len(tokenizer), [9, 9], instruction=10, text=60)
    passes = Passes(tiny_llama.model)
    greedy_generate(tiny_llama, tokenizer, prompts, encoder_decoder=False, max_new_tokens=1)
    assert passes.shapes == [(1, 10), (2, 67), (18, 14)]


def test_a_start_is_let_go_once_its_rows_have_it(tiny_llama: Any) -> None:
    tokenizer = build_tokenizer("bytes")
    session = Session.build(tiny_llama, tokenizer, False, NEW)
    prompts = questions(len(tokenizer), [3])
    with torch.no_grad():
        begun = starts.Starts.read(session, prompts)
        assert begun is not None
        held = weakref.ref(begun.cache)
        rows = CausalRows(session, prompts[::-1], begun)
        del begun
    assert rows.takes_back
    assert held() is None


def test_unlike_prompts_are_read_in_one_pass(tiny_llama: Any) -> None:
    tokenizer = build_tokenizer("bytes")
    prompts = questions(len(tokenizer), [1] * 12, instruction=10)
    prompts.append(list(prompts[0]))  # one pair: less than what is worth a second pass
    passes = Passes(tiny_llama.model)
    greedy_generate(tiny_llama, tokenizer, prompts, encoder_decoder=False, max_new_tokens=1)
    assert len({width for _, width in passes.shapes[1:]}) == len(passes.shapes) - 1  # no pass of last tokens
    assert min(width for _, width in passes.shapes) >= 10


# ---- which prompts are a family ----


def members(family: list[int], prompts: Prompts) -> list[list[int]]:
    """The places of each family's prompts; each is named by its longest."""
    found = [[place for place, name in enumerate(family) if name == one] for one in sorted(set(family))]
    for places in found:
        longest = max(len(prompts[place]) for place in places)
        assert family[places[0]] == next(place for place in places if len(prompts[place]) == longest)
    return found


few = st.lists(st.lists(st.integers(0, 1), max_size=6), min_size=1, max_size=7)


def in_common(prompts: Prompts) -> int:
    """How many tokens they start with, but for the last one of each."""
    columns = zip(*(prompt[:-1] for prompt in prompts), strict=False)
    return next((at for at, column in enumerate(columns) if len(set(column)) > 1), min(map(len, prompts)) - 1)


def cost(prompts: Prompts, groups: list[list[int]], shared: int, apart: int) -> int:
    """Tokens that are read when each group's start is read once."""
    total = 0
    for group in groups:
        some = [prompts[place] for place in group]
        start = shared
        if len(group) > 1:
            start = in_common(some)
            total += start - shared + apart
        total += sum(len(prompt) - start for prompt in some)
    return total


@given(rests=few, apart=st.integers(0, 4), shared=st.integers(0, 2))
def test_families_take_the_fewest_tokens(rests: Prompts, apart: int, shared: int) -> None:
    prompts = [[9] * shared + rest + [2] for rest in rests]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(starts, "_APART", apart)
        patch.setattr(starts, "_LEAST_SAVED", 0.0)
        found = members(families(prompts, shared), prompts)
    assert sorted(place for family in found for place in family) == list(range(len(prompts)))
    order = sorted(range(len(prompts)), key=lambda place: prompts[place])
    least = []
    for choice in range(2 ** (len(prompts) - 1)):  # every way to cut the sorted prompts
        edges = [0, *(at for at in range(1, len(order)) if choice >> (at - 1) & 1), len(order)]
        groups = [order[begin:end] for begin, end in pairwise(edges)]
        if all(len(g) == 1 or in_common([prompts[p] for p in g]) > shared for g in groups):
            least.append(cost(prompts, groups, shared, apart))
    assert cost(prompts, found, shared, apart) == min(least)


def test_families_that_save_little_are_not_kept_together() -> None:
    def pair(same: int) -> Prompts:
        return [[1] * same + [2], [1] * same + [3]]

    assert families(pair(40), 0) == [0, 1]  # 40 tokens saved, and 32 spent
    assert families(pair(100), 0) == [0, 0]
    others = [[number] * 100 for number in range(4, 12)]
    assert families(pair(100) + others, 0) == list(range(10))


def test_a_large_family_is_found_in_a_short_time(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [[1] * 90 + [number] for number in range(200)]
    counted: list[int] = []
    monkeypatch.setattr(
        starts, "min", lambda *values, **how: counted.append(1) or min(*values, **how), raising=False
    )
    found = members(families(prompts, 10), prompts)
    assert max(map(len, found)) <= starts._MOST
    assert len(found) <= -(-200 // starts._MOST)
    assert len(counted) < 3 * 200 * starts._MOST


@given(rests=few, family=st.lists(st.integers(0, 3), min_size=7, max_size=7))
def test_stems_are_starts_of_their_prompts(rests: Prompts, family: list[int]) -> None:
    prompts = [[9, 9, *rest, 2] for rest in rests]
    found = stems(prompts, family[: len(prompts)], 2)
    if found is None:
        return
    texts, which = found
    assert [len(text) for text in texts] == sorted(map(len, texts), reverse=True)
    for prompt, number, place in zip(prompts, family, which, strict=False):
        assert 2 < len(texts[place]) < len(prompt)
        assert prompt[: len(texts[place])] == texts[place]
        assert all(other == place for one, other in zip(family, which, strict=False) if one == number)


def test_prompts_of_other_families_have_no_stems() -> None:
    assert stems([[1, 2, 3], [1, 2, 4]], [0, 1], 0) is None
    assert stems([[1, 2, 3], [1, 2, 4], [5, 6]], [0, 0, 1], 0) == ([[1, 2], [5]], [0, 0, 1])
    assert stems([[1, 2, 3], [1, 2, 4], [1, 6]], [0, 0, 1], 1) is None  # nothing to read of the third
