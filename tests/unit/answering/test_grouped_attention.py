from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaForCausalLM
from transformers.models.llama import modeling_llama

from kifuse.answering.generation import greedy_generate
from kifuse.answering.grouped_attention import attend, grouped_attention
from tests.tiny import build_llama


def current(model: Any) -> str:
    return model.config._attn_implementation


@given(
    rows=st.integers(1, 3),
    groups=st.integers(1, 3),
    each=st.integers(1, 4),
    columns=st.integers(1, 9),
    before=st.integers(0, 6),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    hidden=st.sampled_from([None, "later", "later and padding", "some"]),
    endless=st.booleans(),
    parts=st.tuples(st.integers(1, 5), st.integers(1, 200), st.integers(1, 100)),
)
def test_equals_attention_over_copied_keys(
    rows: int,
    groups: int,
    each: int,
    columns: int,
    before: int,
    dtype: torch.dtype,
    hidden: str | None,
    endless: bool,
    parts: tuple[int, int, int],
):
    generator = torch.Generator().manual_seed(columns)
    size, length = 8, before + columns

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    # as the layers have it: heads and columns changed places in a view
    query = numbers(rows, columns, groups * each, size).transpose(1, 2)
    key, values = numbers(rows, groups, length, size), numbers(rows, groups, length, size)
    later = torch.ones(columns, length, dtype=torch.bool).triu(before + 1)
    hides = {
        "later": later,
        "later and padding": later | (torch.arange(length) < before // 2),
        "some": torch.arange(length) == length - 2,  # sees what comes later
    }
    least = -torch.inf if endless else torch.finfo(dtype).min
    mask = torch.zeros(columns, length, dtype=dtype).masked_fill_(hides[hidden], least) if hidden else None
    layer = SimpleNamespace(num_key_value_groups=each, training=False)
    inputs = (layer, query, key, values, None if mask is None else mask.expand(rows, 1, -1, -1), 0.3)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in zip(("_COLUMNS", "_WEIGHTS", "_PART"), parts, strict=True):
            patch.setattr(f"kifuse.answering.grouped_attention.{name}", value)
        found, _ = attend(*inputs)
    expected, _ = modeling_llama.eager_attention_forward(*inputs)  # pyright: ignore[reportArgumentType]
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert found.is_contiguous()
    torch.testing.assert_close(found, expected)


def test_columns_do_not_multiply_keys_that_come_later(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("kifuse.answering.grouped_attention._COLUMNS", 2)
    query, key, value = torch.randn(1, 2, 6, 4), torch.randn(1, 1, 9, 4), torch.randn(1, 1, 9, 4)
    mask = torch.full((6, 9), -torch.inf).triu(4)[None, None]
    read: list[int] = []
    multiply = torch.matmul

    def noted(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        read.append(b.shape[-1])
        return multiply(a, b)

    monkeypatch.setattr(torch, "matmul", noted)
    attend(SimpleNamespace(), query, key, value, mask, 1.0)
    assert read[::2] == [5, 7, 9]  # of the products with keys; those with values stand between


def test_generation_copies_no_keys(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
):
    tiny_llama.set_attn_implementation("eager")
    prompts = [[7, 8, 9, 10], [11, 12], [13] * 6]

    def answers() -> list[str]:
        return greedy_generate(tiny_llama, tiny_tokenizer, prompts, encoder_decoder=False, max_new_tokens=5)

    expected = answers()
    monkeypatch.setattr(modeling_llama, "repeat_kv", lambda *_: pytest.fail("the keys were copied"))
    assert answers() == expected
    with torch.no_grad(), pytest.raises(pytest.fail.Exception):
        tiny_llama(torch.tensor([[7, 8]]))


def test_a_model_attends_afterwards_as_before(tiny_llama: LlamaForCausalLM):
    tiny_llama.set_attn_implementation("eager")
    with pytest.raises(KeyError), grouped_attention(tiny_llama):
        assert current(tiny_llama) not in ("eager", "sdpa")
        raise KeyError
    assert current(tiny_llama) == "eager"


def test_a_users_choice_of_attention_stays(tiny_llama: LlamaForCausalLM, tiny_t5: Any):
    tiny_llama.set_attn_implementation("sdpa")
    before = current(tiny_t5)
    with grouped_attention(tiny_llama), grouped_attention(tiny_t5):
        assert current(tiny_llama) == "sdpa"
        assert current(tiny_t5) == before


def test_a_family_with_an_attention_of_its_own_keeps_it(tiny_tokenizer: Any):
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        attn_logit_softcapping=0.1,
    )
    model = Gemma2ForCausalLM(config)
    model.set_attn_implementation("eager")
    with grouped_attention(model):
        assert current(model) == "eager"


def test_heads_with_keys_of_their_own_need_no_grouping(tiny_tokenizer: Any):
    model = build_llama(len(tiny_tokenizer), groups=4)
    model.set_attn_implementation("eager")
    with grouped_attention(model):
        assert current(model) == "eager"
